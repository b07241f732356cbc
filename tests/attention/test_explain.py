"""explain tells what the plan does, for every family and step, without computing anything."""

import mlx.core as mx
import pytest

import mlx_flash
from mlx_flash import explain, use_backend
from mlx_flash.explanations.explain import inner_problem
from mlx_flash.explanations.metal_text import generated_text
from mlx_flash.kernels.devices import FAMILIES
from mlx_flash.kernels.plan import key_value_kinds, plan_of
from mlx_flash.kernels.tile_layers import TENSOR_LAYERS
from mlx_flash.problem.kinds import BACKWARD_MASK, BACKWARD_QUERY_DELTA, FORWARD, TRAINING

KERNELS = [step for step in TRAINING if step is not BACKWARD_MASK]
HEAD_DIMS = (3, 64, 128, 256, 512)


@pytest.mark.parametrize("dtype", ("float32", "float16", "bfloat16"))
@pytest.mark.parametrize("head_dim", HEAD_DIMS)
@pytest.mark.parametrize("family", FAMILIES)
def test_says_what_the_plan_does(family, head_dim, dtype):
    told = explain(head_dim=head_dim, dtype=dtype, family=family, heads=4, key_heads=2, length=100, causal=True)
    assert told.family is FAMILIES[family]
    steps = [FORWARD, BACKWARD_QUERY_DELTA, *key_value_kinds(inner_problem(told.problem).signature, told.family)]
    assert [step.name for step in told.kernels] == [step.name for step in steps]
    for step, said in zip(steps, told.kernels):
        inner = inner_problem(told.problem)
        real = plan_of(step, inner, told.family)
        launch = real.launch(inner)
        assert said.kernel == real.kernel.name
        assert said.blocks[:2] == (real.config.parallel, real.config.traversal)
        assert (said.threads, said.max_threads) == (launch.threadgroup[0], real.max_threads)
        assert said.grid == (launch.grid[0] // said.threads, *launch.grid[1:])
        assert said.output_bytes == launch.output_bytes
        named = {*said.cached, *said.reread, *said.paged}
        assert named == {name for name in step.cacheable if name in (*step.inputs, *step.outputs)}
        assert ("max_total_threads" in real.kernel.header) == (said.max_threads is not None)
        assert said.tiles == (real.config.tiles if step.tiled else "none")
        # Simdgroups that share columns of the head dimension exchange sums, not operands.
        waits = "threadgroup_barrier(" in real.kernel.header and real.config.head_parts == 1
        assert (waits or said.tiles in TENSOR_LAYERS) == said.uses_threadgroup_memory
        assert said.kernel in str(real.kernel.name) and str(said.grid[0]) in str(told)


@pytest.mark.parametrize(
    "family, tiles, split", [("sm80", "mma", {"tf32"}), ("sm90", "wgmma", {"tf32_wgmma", "tf32_hopper"})]
)
def test_tensor_cores(family, tiles, split):
    """The demands on a multiprocessor are within its limits; beyond 128 columns dK and dV have a kernel each."""
    for head_dim, last in ((128, ["backward_key_value"]), (256, ["backward_key", "backward_value"])):
        told = explain(head_dim=head_dim, dtype="bfloat16", family=family, length=2000)
        assert [step.name for step in told.kernels] == ["forward", "delta", "backward_query", *last]
        for step in (step for step in told.kernels if step.name != "delta"):
            assert step.tiles == tiles and 0 < step.threadgroup_bytes <= FAMILIES[family].threadgroup_bytes
            assert step.registers <= 2 * 255 and not step.paged and step.uses_threadgroup_memory
            assert "in threadgroup memory" in str(step.facts()) or not step.reread
    for head_dim, others in ((64, {*split, "none"}), (264, {"simdgroup", "none"})):
        full = explain(head_dim=head_dim, dtype="float32", family=family, length=2000)
        assert {step.tiles for step in full.kernels} == others


NOT_ACCELERATED = {
    "for float32": dict(dtype="float32"),
    "beyond 256 columns": dict(head_dim=264),
    "of this kind": dict(length=1),
}


@pytest.mark.parametrize("reason", NOT_ACCELERATED)
def test_why_the_kernels_of_m5_are_not_used(reason):
    numbers = dict(head_dim=64, dtype="float16", length=100, key_length=100) | NOT_ACCELERATED[reason]
    (step, *_) = explain(**numbers, family="apple10").kernels
    assert step.tiles == "simdgroup"
    assert step.why.endswith(f"; 8x8 matrices, since there is no kernel for neural accelerators {reason}")
    assert "accelerators" not in explain(**numbers, family="apple9").kernels[0].why


def test_pages_that_hold_no_block_of_the_kernels_of_m5():
    q, pool, pages = mx.zeros((1, 2, 40, 64), mx.float16), mx.zeros((3, 2, 16, 64), mx.float16), mx.array([[2, 0, 1]])
    step = explain(q, pool, pool, lengths=mx.array([45]), pages=pages, family="apple10").kernels[0]
    assert step.tiles == "simdgroup" and step.why.endswith("no kernel for neural accelerators for pages of 16 keys")


def test_says_that_two_simdgroups_share_the_columns():
    said = explain(head_dim=256, dtype="float16", length=100, family="apple10").kernels[0]
    assert said.tiles == "nax" and said.threads == 64 and said.why.endswith("; two simdgroups share the columns")
    assert said.threadgroup_bytes == 2 * 16 * 64 * 4  # parts of S


def test_arrays_and_numbers_agree():
    q, k, v = mx.zeros((2, 4, 33, 24)), mx.zeros((2, 2, 50, 24)), mx.zeros((2, 2, 50, 16))
    numbers = {"head_dim": 24, "value_dim": 16, "heads": 4, "key_heads": 2, "length": 33, "key_length": 50, "batch": 2}
    by_arrays = explain(q, k, v, mask="causal", family="apple7")
    assert by_arrays == explain(**numbers, dtype="float32", causal=True, family="apple7")


def test_takes_what_attention_takes():
    q = mx.zeros((1, 4, 48, 64))
    bias = mx.zeros((4, 1, 48))
    told = explain(q, q, q, mask=bias, window=(4, None), softcap=30.0, sinks=mx.zeros(4), family="apple9")
    names = [step.name for step in TRAINING]  # the mask has a gradient
    assert [step.name for step in told.kernels] == ["forward", "backward_query_delta", *names[3:]]
    assert "delta is made here too" in told.kernels[1].why and "fewer than 1025" in told.kernels[1].why
    seen = explain(q, q, q, mask=bias, return_lse=True, family="apple9")  # the gradient of the LSE enters delta
    assert [step.name for step in seen.kernels] == names
    assert all(word in str(told) for word in ("mask_float32", "window", "softcap", "sinks"))
    long = mx.zeros((1, 16, 4096, 64), mx.float16)
    mapped = [explain(long, long, long, mask=mx.zeros((n, 4096), mx.bool_), family="sm90") for n in (1, 4096)]
    assert all(one.kernels[0].why.endswith("blocks that it hides are left out") for one in mapped)
    assert not any("maps the mask" in one.why for one in explain(q, q, q, mask=bias, family="sm90").kernels)
    kept = explain(q, q, q, mask=mx.zeros((48, 48), mx.bool_), return_lse=True, stream=mx.cpu, family="apple9")
    assert len(kept.kernels) == len(KERNELS) and "mask_bool" in str(kept)


def test_nothing_is_evaluated():
    length = 2**20  # q alone would take 32 GB
    told = explain(head_dim=128, heads=64, length=length, family="apple9")
    assert told.unfused_bytes == 2 * 2 * 64 * length**2
    assert told.residual_bytes == 3 * 4 * 64 * length


def test_extra_memory_counts_statistics_and_paged_buffers():
    heads, length, head_dim = 8, 1025, 512
    forward, delta, query, key_value = explain(head_dim=head_dim, heads=heads, length=length, family="apple9").kernels
    rows = heads * length
    assert forward.paged == ("O",) and forward.extra_bytes == 2 * rows * 4 + rows * head_dim * 4
    assert delta.extra_bytes == rows * 4
    assert query.extra_bytes == rows * head_dim * 4 and key_value.extra_bytes == 2 * rows * head_dim * 4
    full = explain(head_dim=head_dim, dtype="float32", heads=heads, length=length, family="apple9").kernels
    assert [step.extra_bytes for step in full] == [2 * rows * 4, rows * 4, 0, 0]


def test_says_which_backend_and_why():
    with use_backend("reference"):
        told = explain(head_dim=64)
    assert (told.backend, told.family, told.kernels) == ("reference", None, ())
    with use_backend("simulator", "apple7"):
        told = explain(head_dim=64)
    assert (told.backend, told.family.name) == ("simulator", "apple7") and "use_backend" in told.why
    assert explain(head_dim=64, family="apple8", backend="metal").family.name == "apple8"
    assert "no kernel runs" in explain(*[mx.zeros((1, 2, 0, 8))] * 3, family="apple9").why
    assert "40 columns for 33" in explain(head_dim=33).padding


@pytest.mark.parametrize(
    "arguments, words",
    [
        ({}, ["head_dim", "expected", "none"]),
        ({"head_dim": 0}, ["head_dim", "at least 1", "got 0"]),
        ({"head_dim": 64, "length": "long"}, ["length", "whole number", "'long'"]),
        ({"head_dim": 64, "dtype": "int8"}, ["dtype", "float16", "'int8'"]),
        ({"head_dim": 64, "family": "apple1"}, ["family", "apple9", "'apple1'"]),
        ({"head_dim": 64, "backend": "rocm"}, ["backend", "simulator", "'rocm'"]),
        ({"head_dim": 64, "causel": True}, ["causel", "window", "spelling"]),
        ({"head_dim": 64, "window": (-2, 0)}, ["window", "-2"]),
        ({"head_dim": 64, "heads": 3, "key_heads": 2}, ["q", "multiple", "got 3"]),
        ({"q": mx.zeros((1, 1, 1, 8)), "head_dim": 8}, ["head_dim", "arrays or numbers", "both"]),
        ({"q": mx.zeros((1, 1, 1, 8))}, ["k", "mlx.core.array", "NoneType"]),
    ],
)
def test_bad_arguments(arguments, words):
    with pytest.raises(ValueError) as caught:
        explain(**arguments)
    assert all(word in str(caught.value) for word in words), str(caught.value)


@pytest.mark.parametrize("step", (*KERNELS, BACKWARD_QUERY_DELTA), ids=str)
def test_source_is_the_text_mlx_generates(step):
    """MLX's text holds our header and body whole."""
    problem = explain(head_dim=40, family="apple9", heads=4, key_heads=2, length=5, key_length=70).problem
    made = plan_of(step, problem, FAMILIES["apple9"])
    text = generated_text(made, problem)
    assert text.startswith(made.kernel.header) and made.kernel.body in text
    assert f"[[kernel]] void custom_kernel_{made.kernel.name}" in text


def test_explain_is_public():
    assert "explain" in mlx_flash.__all__ and len(mlx_flash.__all__) <= 15
