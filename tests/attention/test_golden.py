"""The generated Metal text is kept: a change of any kernel shows in the diff of a commit, or it fails here.

`golden/digests.json` holds one digest for each kind of kernel, precision and GPU family, `golden/NAME.metal` four whole
texts to read in a review, and `golden/signatures.metal` the arguments as MLX writes them. After a meant change:
MLX_FLASH_UPDATE_GOLDEN=1 python -m pytest tests/attention/test_golden.py
"""

import hashlib
import json
import os
import re
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import pytest
from problems import make_problem
from table_rows import builds_of, tensor_builds_of

from mlx_flash.explanations.metal_text import generated_text
from mlx_flash.kernels import source
from mlx_flash.kernels.devices import FAMILIES
from mlx_flash.kernels.plan import delta_inside, plan, plan_of
from mlx_flash.metal.frontend.signature import shape_facts
from mlx_flash.problem.kinds import (
    BACKWARD_KEY_VALUE,
    BACKWARD_MASK,
    BACKWARD_QUERY,
    BACKWARD_QUERY_DELTA,
    DECODE,
    DECODING,
    FORWARD,
    KEPT_KINDS,
    TRAINING,
)
from mlx_flash.problem.problem import Signature
from mlx_flash.problem.quantization import Quantization
from mlx_flash.problem.variants import Variants

KINDS = (*TRAINING, BACKWARD_QUERY_DELTA, *DECODING)
GOLDEN = Path(__file__).parent / "golden"
UPDATE = bool(os.environ.get("MLX_FLASH_UPDATE_GOLDEN"))
# All that one call can ask for: the mask is an array or a block mask, never both.
MOST = {"causal", "window", "alibi", "sinks", "softcap", "segments", "dropout"}
EVERYTHING = [Variants(mask="float16", **dict.fromkeys(MOST, True)), Variants(block=128, **dict.fromkeys(MOST, True))]
QUANTIZED = (Quantization("affine", 4, 64), Quantization("nvfp4", 4, 16))
BUFFERS = 31  # that a Metal function can take


def texts(step) -> dict[str, list[str]]:
    """The texts of every row's kernels, plain, causal, and with all variants that go together; by the row's table."""
    found = defaultdict(list)
    for arguments in (*builds_of(step), *tensor_builds_of(step)):
        *start, variants, threads = arguments
        family, dtype = start[2:4]
        dequantizes = step in (FORWARD, DECODE) and family.uses_threadgroup_memory and not family.tensor
        quantized = [Variants(quantization=one) for one in QUANTIZED] if dequantizes else []
        every = (variants, *EVERYTHING, *quantized)
        if variants.quantization:
            every = [replace(one, quantization=form) for one in (variants, *EVERYTHING) for form in QUANTIZED]
        for chosen in every:
            kernel = source.build(*start, chosen, threads)
            found[f"{step} {dtype} {start[1].tiles} {family.table}"] += [kernel.name, kernel.header, kernel.body]
    return found


def digest(texts: list[str]) -> str:
    return hashlib.sha256("\n".join(sorted(texts)).encode()).hexdigest()[:16]


def readable(text: str) -> str:
    """A text that was built with its comments and blank lines, without them."""
    lines = (re.sub(r"[ \t]*//.*", "", line) for line in text.splitlines())
    return "".join(f"{line}\n" for line in lines if line.strip())


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


@pytest.mark.long
def test_every_kernel_is_the_one_kept():
    found = {name: digest(kept) for step in (*KINDS, *KEPT_KINDS) for name, kept in sorted(texts(step).items())}
    text = json.dumps(found, indent=0) + "\n"
    assert text == kept(GOLDEN / "digests.json", text)


# What a reviewer reads: the plain kernel of the papers, each half of the backward pass, and the fullest decoding.
WHOLE = {
    "forward": (FORWARD, "apple9", "float16", Variants(causal=True)),
    "backward_query": (BACKWARD_QUERY, "sm90", "bfloat16", Variants(block=128)),
    "backward_key_value": (BACKWARD_KEY_VALUE, "apple7", "float32", Variants(mask="float32", dropout=0.5)),
    "decode": (DECODE, "apple7", "float16", EVERYTHING[0]),
}


@pytest.mark.parametrize("name", WHOLE)
def test_four_texts_are_kept_whole(name, monkeypatch):
    kind, family, dtype, variants = WHOLE[name]
    problem = make_problem(1, 4, 2, 8, 256, 64, 64, dtype)
    signature = replace(problem.signature, variants=variants)
    monkeypatch.setenv(source.KEEP_COMMENTS, "1")
    monkeypatch.setattr("mlx_flash.kernels.plan.build", source.build.__wrapped__)
    kernel = plan.__wrapped__(kind, signature, FAMILIES[family], 8 * (kind is DECODE)).kernel
    text = f"// {kernel.name}\n\n{readable(kernel.header)}\n// The body\n{readable(kernel.body)}"
    assert text == kept(GOLDEN / f"{name}.metal", text)


def test_the_arguments_are_those_kept():
    found = "\n".join(signature(step) for step in KINDS if step is not BACKWARD_MASK)
    assert found == kept(GOLDEN / "signatures.metal", found)


@pytest.mark.parametrize("features", EVERYTHING, ids=("array", "blocks"))
@pytest.mark.parametrize("step", KINDS, ids=repr)
def test_the_fullest_kernel_has_buffers_enough(step, features):
    *start, _, threads = builds_of(step)[0]
    kernel = source.build(*start, features, threads)
    facts = shape_facts(list(kernel.inputs), kernel.body)
    enough = sum(1 + sum(found) for found in facts) + len(kernel.outputs) <= BUFFERS
    signature = Signature(1, 1, 64, 64, "float16", 1.0, features)
    assert enough == (step is not BACKWARD_QUERY_DELTA or delta_inside(signature, FAMILIES["apple7"], 1))


@pytest.mark.parametrize("step", (FORWARD, DECODE), ids=repr)
def test_a_dequantizing_kernel_has_buffers_enough(step):
    """The call has every option of quantized_attention."""
    *start, _, threads = builds_of(step)[0]
    named = dict.fromkeys(("causal", "window", "sinks", "softcap"), True)
    for mask in ({"mask": "float16"}, {"block": 128}):
        kernel = source.build(*start, Variants(quantization=QUANTIZED[0], **named, **mask), threads)
        facts = shape_facts(list(kernel.inputs), kernel.body)
        assert sum(1 + sum(found) for found in facts) + len(kernel.outputs) <= BUFFERS
