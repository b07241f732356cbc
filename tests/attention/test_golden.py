"""The generated Metal text is kept: a change of any kernel shows in the diff of a commit, or it fails here.

`golden/STEP.json` holds a digest of the text of every table row's kernels, `golden/signatures.metal` the arguments as
MLX writes them. After a meant change: MLX_FLASH_UPDATE_GOLDEN=1 python -m pytest tests/test_golden.py
"""

import hashlib
import json
import os
from pathlib import Path

import pytest
from problems import make_problem
from table_rows import builds_of

from mlx_flash.explanations.metal_text import generated_text
from mlx_flash.kernels import source
from mlx_flash.kernels.devices import FAMILIES
from mlx_flash.kernels.plan import plan_of
from mlx_flash.metal.frontend.signature import shape_facts
from mlx_flash.problem.kinds import BACKWARD_MASK, DECODE, DECODING, FORWARD
from mlx_flash.problem.kinds import STEPS as TRAINING
from mlx_flash.problem.quantization import Quantization
from mlx_flash.problem.variants import Variants

STEPS = (*TRAINING, *DECODING)
GOLDEN = Path(__file__).parent / "golden"
UPDATE = bool(os.environ.get("MLX_FLASH_UPDATE_GOLDEN"))
# All that one call can ask for: the mask is an array or a block mask, never both.
MOST = {"causal", "window", "alibi", "sinks", "softcap", "segments", "dropout"}
EVERYTHING = [Variants(mask="float16", **dict.fromkeys(MOST, True)), Variants(block=128, **dict.fromkeys(MOST, True))]
QUANTIZED = (Quantization("affine", 4, 64), Quantization("nvfp4", 4, 16))
BUFFERS = 31  # that a Metal function can take


def digests(step) -> dict[str, str]:
    """Of every row's kernels, plain and causal, and with every feature that goes together."""
    found = {}
    for arguments in builds_of(step):
        *start, features, threads = arguments
        # Dequantizing kernels are staged on every family.
        dequantizes = step in (FORWARD, DECODE) and start[2].uses_threadgroup_memory
        packed = [Variants(quantization=one) for one in QUANTIZED] if dequantizes else []
        for chosen in (features, *EVERYTHING, *packed):
            kernel = source.build(*start, chosen, threads)
            found[kernel.name] = hashlib.sha256((kernel.header + kernel.body).encode()).hexdigest()[:16]
    return found


def signature(step) -> str:
    """The kernel's head as MLX writes it, with every buffer: float16, head dimension 64, causal, on M3 or later."""
    problem = make_problem(1, 4, 2, 128, 256, 64, 64, "float16", causal=True)
    text = generated_text(plan_of(step, problem, FAMILIES["apple9"]), problem)
    return text[text.index("[[kernel]]") :].split("{", 1)[0]


def kept(path: Path, text: str) -> str:
    if UPDATE:
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="ascii")
    return path.read_text(encoding="ascii")


@pytest.mark.parametrize("step", STEPS, ids=repr)
def test_every_kernel_is_the_one_kept(step):
    found = json.dumps(dict(sorted(digests(step).items())), indent=0) + "\n"
    assert found == kept(GOLDEN / f"{step}.json", found)


def test_the_arguments_are_those_kept():
    found = "\n".join(signature(step) for step in STEPS if step is not BACKWARD_MASK)
    assert found == kept(GOLDEN / "signatures.metal", found)


@pytest.mark.parametrize("features", EVERYTHING, ids=("array", "blocks"))
@pytest.mark.parametrize("step", STEPS, ids=repr)
def test_the_fullest_kernel_has_buffers_enough(step, features):
    *start, _, threads = builds_of(step)[0]
    kernel = source.build(*start, features, threads)
    facts = shape_facts(list(kernel.inputs), kernel.body)
    assert sum(1 + sum(found) for found in facts) + len(kernel.outputs) <= BUFFERS


@pytest.mark.parametrize("step", (FORWARD, DECODE), ids=repr)
def test_a_dequantizing_kernel_has_buffers_enough(step):
    """With all that quantized_attention takes."""
    *start, _, threads = builds_of(step)[0]
    named = dict.fromkeys(("causal", "window", "sinks", "softcap"), True)
    for mask in ({"mask": "float16"}, {"block": 128}):
        kernel = source.build(*start, Variants(quantization=QUANTIZED[0], **named, **mask), threads)
        facts = shape_facts(list(kernel.inputs), kernel.body)
        assert sum(1 + sum(found) for found in facts) + len(kernel.outputs) <= BUFFERS
