"""The calls that patch() leaves to the built-in: rules for each family of GPUs, checked against measurements."""

import json
from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import pytest
from tiny_models import close

import mlx_flash
from mlx_flash import backends, use_backend
from mlx_flash.integrations import policy
from mlx_flash.integrations.policy import RULES, Asked, rule_of
from mlx_flash.kernels.devices import FAMILIES, Tuned, TunedCall

MEASURED = json.loads((Path(__file__).parents[2] / "bench" / "results" / "cuda_speed.json").read_text("utf-8"))
PREFILL = Asked(mx.bfloat16, 128, 128, 4096, 4096, mask="causal")
TRAINING = PREFILL._replace(training=True)
DECODING = PREFILL._replace(queries=1, mask=None, group=4)
# What every family of Apple before the M5 does, by what differs from the three calls above.
APPLE = {
    "prefill": (PREFILL, "fused forward"),
    "float32": (PREFILL._replace(dtype=mx.float32), "fused forward"),
    "D = 96 and 64": (PREFILL._replace(head_dim=96, value_dim=64), "fused forward"),
    "D = 112": (PREFILL._replace(head_dim=112, value_dim=112), "elsewhere"),
    "D = 192 and 128": (PREFILL._replace(head_dim=192), "elsewhere"),
    "D = 256": (PREFILL._replace(head_dim=256, value_dim=256), "fused forward at D = 256"),
    "D = 256, short": (PREFILL._replace(head_dim=256, value_dim=256, queries=512, keys=512), "elsewhere"),
    "D = 256, dense": (PREFILL._replace(head_dim=256, value_dim=256, mask=None), "elsewhere"),
    "rows that see nothing": (PREFILL._replace(keys=1024), "elsewhere"),
    "array mask": (PREFILL._replace(mask="array"), "array mask"),
    "training": (TRAINING, "blocked backward"),
    "training with a mask": (TRAINING._replace(mask="array"), "array mask under a gradient"),
    "training with sinks": (TRAINING._replace(sinks=True), "sinks under a gradient"),
    "training, few queries": (TRAINING._replace(queries=8), "few queries under a gradient"),
    "training, D = 40": (TRAINING._replace(head_dim=40, value_dim=40), "elsewhere"),
    "decoding": (DECODING, "decoding"),
    "decoding with a mask": (DECODING._replace(mask="array"), "decoding"),
    "decoding, D = 80": (DECODING._replace(head_dim=80, value_dim=80), "elsewhere"),
    "decoding, too many rows": (DECODING._replace(queries=8, group=8), "elsewhere"),
    "mapped, grouped": (DECODING._replace(mapped=True), "mapped"),
}
NVIDIA = {
    "prefill": (PREFILL, "fused forward"),
    "float32": (PREFILL._replace(dtype=mx.float32), "elsewhere"),
    "D = 192": (PREFILL._replace(head_dim=192, value_dim=192), "elsewhere"),
    "array mask": (PREFILL._replace(mask="array"), "array mask"),
    "ragged training": (TRAINING._replace(queries=4097, keys=4097), "ragged training"),
    "long training": (TRAINING, "long causal training"),
    "short training": (TRAINING._replace(queries=1024, keys=1024), "fused gradient"),
    "dense training": (TRAINING._replace(mask=None), "fused gradient"),
    "training in float32": (TRAINING._replace(dtype=mx.float32, mask=None), "unfused, up to 4096 queries"),
    "training, D = 264": (TRAINING._replace(head_dim=264), "unfused, up to 4096 queries"),
    "prefill, D = 512, dense": (PREFILL._replace(value_dim=512, mask=None), "unfused, up to 4096 queries"),
    "prefill, D = 512, causal": (PREFILL._replace(value_dim=512), "elsewhere"),
    "float32 with sinks": (PREFILL._replace(dtype=mx.float32, mask=None, sinks=True), "elsewhere"),
    "decoding": (DECODING, "decoding"),
    "decoding, 5 queries, D = 256": (DECODING._replace(queries=5, head_dim=256, value_dim=256), "elsewhere"),
}


LARGE = PREFILL._replace(head_dim=256, value_dim=256)
WIDE, UNFUSED = PREFILL._replace(head_dim=512, mask=None), "unfused, up to 4096 queries"
SMALL = TRAINING._replace(head_dim=64, value_dim=64)
# Limits of the rules: (family, the last call that fits, its rule, what the next call has, the next call's rule).
LIMITS = {
    "32 rows": ("apple9", DECODING._replace(queries=8, keys=99), "decoding", {"group": 5}, "elsewhere"),
    "8 queries": ("apple9", DECODING._replace(queries=8), "decoding", {"queries": 9}, "fused forward"),
    "queries as keys": ("apple9", DECODING._replace(queries=4, keys=4), "decoding", {"keys": 3}, "elsewhere"),
    "2048 queries": ("apple9", LARGE._replace(queries=2048, keys=2048), "fused forward at D = 256",
        {"queries": 2047, "keys": 2047}, "elsewhere"),
    "as many keys": ("apple9", LARGE, "fused forward at D = 256", {"keys": 4097}, "elsewhere"),
    "8 queries of a gradient": ("apple9", TRAINING._replace(queries=8), "few queries under a gradient",
        {"queries": 9}, "blocked backward"),
    "3 queries": ("sm90", DECODING._replace(queries=3, dtype=mx.float32), "decoding", {"queries": 4}, "elsewhere"),
    "128 queries": ("sm90", TRAINING._replace(queries=1152), "fused gradient", {"queries": 1088}, "ragged training"),
    "4096 queries": ("sm90", TRAINING, "long causal training", {"queries": 3968}, "fused gradient"),
    "4096 queries, D = 64": ("sm90", SMALL, "long causal training", {"queries": 3968}, "fused gradient"),
    "4096 queries, unfused": ("sm90", WIDE, UNFUSED, {"queries": 4097}, "elsewhere"),
    "4096 keys, unfused": ("sm90", WIDE, UNFUSED, {"keys": 4097}, "elsewhere"),
    "33 queries, unfused": ("sm90", WIDE._replace(queries=33), UNFUSED, {"queries": 32}, "elsewhere"),
    "257 columns, unfused": ("sm90", WIDE._replace(head_dim=264), UNFUSED, {"head_dim": 256}, "elsewhere"),
    "D = 128": ("sm90", PREFILL, "fused forward", {"head_dim": 136}, "elsewhere"),
    "D of 8": ("sm90", PREFILL._replace(value_dim=72), "fused forward", {"value_dim": 76}, "elsewhere"),
}  # fmt: skip


@pytest.fixture(autouse=True)
def newest_mlx(monkeypatch):
    """The rules are about the gradient that MLX has since 0.32.4."""
    monkeypatch.setattr(policy, "VERSION", (0, 32, 4))
    policy.rule_of.cache_clear()
    yield
    policy.rule_of.cache_clear()


@pytest.mark.parametrize("name", APPLE)
def test_apple(name):
    asked, rule = APPLE[name]
    for family in ("apple7", "apple8", "apple9"):
        assert rule_of(family, asked).name == rule


@pytest.mark.parametrize("name", NVIDIA)
def test_nvidia(name):
    asked, rule = NVIDIA[name]
    for family in ("sm80", "sm90"):
        assert rule_of(family, asked).name == rule


@pytest.mark.parametrize("name", LIMITS)
def test_limits(name):
    family, last, rule, change, other = LIMITS[name]
    assert rule_of(family, last).name == rule
    assert rule_of(family, last._replace(**change)).name == other


@pytest.mark.parametrize(
    "lengths, used", [((600, 2400), True), ((601, 1200), False), ((300, 2401), False), ((150, 600), True)]
)
def test_times_of_similar_lengths_alone_decide(lengths, used):
    """A timed call decides only if both of its lengths are within a factor of 2."""
    timed = TunedCall("bfloat16", 128, 300, 1200, None, False, 1.0, 3.0)
    family = replace(FAMILIES["apple9"], tuned=Tuned((), (timed,)))
    asked = PREFILL._replace(mask=None, queries=lengths[0], keys=lengths[1])
    assert (policy.measured_rule(family, asked).name == "timed on this machine") == used


def test_the_m5():
    assert rule_of("apple10", PREFILL._replace(head_dim=256, value_dim=256)).name == "fused forward of the M5"
    assert rule_of("apple10", TRAINING).name == "blocked backward"


def test_before_mlx_had_a_gradient(monkeypatch):
    monkeypatch.setattr(policy, "VERSION", (0, 32, 3))
    policy.rule_of.cache_clear()
    assert rule_of("apple9", TRAINING).name == "gradient before MLX 0.32.4"
    assert not rule_of("apple9", PREFILL).ours


def test_every_family_has_rules_that_decide_everything():
    assert set(RULES) == set(FAMILIES)
    odd = Asked(mx.float32, 13, 7, 1, 0, 3, "array", True, True, True)
    for rules in RULES.values():
        assert rules[-1].ours and rules[-1].fits(odd)
        names = [rule.name for rule in rules]
        assert len(set(names)) == len(names) and all(rule.why for rule in rules)


def asked_of(case: dict) -> Asked:
    """A measured case as patch() would see it: windows and segments come as array masks."""
    masked = case["window"] or case["segment"]
    mask = "array" if masked else "causal" if case["causal"] else None
    head_dim, keys = case["head_dim"], case["length"]
    return Asked(
        getattr(mx, case["dtype"]), head_dim, head_dim, case["queries"] or keys, keys,
        case["heads"] // case["key_heads"], mask, training=case["backward"],
    )  # fmt: skip


@pytest.mark.parametrize("result", MEASURED["results"], ids=lambda result: result["name"])
def test_no_measured_case_is_slower_with_the_patch(result):
    """No case is more than 3 % slower, and attention serves every case in which it is at least 10 % faster."""
    ours, built_in = (result["providers"][name]["ms"] for name in ("mlx_flash", "mx.fast"))
    if rule_of("sm90", asked_of(result["case"])).ours:
        assert ours <= 1.03 * built_in
    else:
        assert ours >= 0.9 * built_in


def arrays(queries=40, width=64):
    return [mx.random.normal((1, 2, n, width), key=mx.random.key(n)) for n in (queries, 48, 49)]


def call(queries=40, width=64, **options):
    q, k, v = arrays(queries, width)
    return mx.fast.scaled_dot_product_attention(q, k, v[:, :, :48], **{"scale": 0.25} | options)


@pytest.mark.simulator
def test_a_patch_follows_the_rules_and_says_so(reference):
    """The simulator has a family's rules; without a policy, a backend chosen by name serves everything."""
    mask = mx.ones((40, 48), mx.bool_)
    wants = [call(), call(mask=mask), call(3), call(width=40)]
    with use_backend("simulator", "apple9"):
        with mlx_flash.patch(policy="fastest") as report:
            for got, want in zip((call(), call(mask=mask), call(3), call(width=40)), wants):
                close(got, want)
        with mlx_flash.patch() as default, mlx_flash.patch(policy="always") as always:
            mx.eval(call())
    assert dict(report.rules) == {("prefill", "array mask"): 1, ("prefill", "elsewhere"): 1}
    lines = str(report).splitlines()
    assert '  1 prefill by rule "array mask"' in lines and '  1 prefill by rule "elsewhere"' in lines
    assert '  1 to the built-in: rule "fused forward": the built-in is one fused kernel' in lines
    assert sum(report.built_in.values()) == 2 and any('rule "decoding"' in line for line in lines)
    assert default.ours == 0 and dict(always.rules) == {("prefill", "always"): 1}
    with use_backend("simulator", "apple9"), mlx_flash.patch() as named:
        mx.eval(call())
    assert dict(named.rules) == {("prefill", "always"): 1}


@pytest.mark.simulator
def test_gradients_have_rules_of_their_own():
    mask = mx.random.normal((40, 48), key=mx.random.key(7))

    def gradient(**options):
        q, k, v = arrays()

        def loss(q):
            return mx.square(mx.fast.scaled_dot_product_attention(q, k, v[:, :, :48], scale=0.25, **options)).sum()

        return mx.grad(loss)(q)

    wants = [gradient(), gradient(mask=mask)]
    with use_backend("simulator", "apple9"), mlx_flash.patch(policy="fastest") as report:
        for got, want in zip((gradient(), gradient(mask=mask)), wants):
            close(got, want)
    assert dict(report.rules) == {("prefill", "array mask under a gradient"): 1}
    assert "blocked backward" in str(report)


@pytest.mark.parametrize("gpu", (False, True))
def test_the_default_is_fastest_on_a_gpu_only(monkeypatch, gpu):
    """A backend that is the machine's own, stood in for by the simulator's."""
    monkeypatch.delenv("MLX_FLASH_BACKEND", raising=False)
    if gpu:
        made = backends.backend("simulator", "apple9")
        monkeypatch.setattr("mlx_flash.integrations.serve.current_backend", lambda *_: made)
    elif backends.default()[0] != "reference":
        pytest.skip("this machine has a GPU")
    with mlx_flash.patch() as report:
        mx.eval(call())
    assert report.ours == (0 if gpu else 1)


@pytest.mark.parametrize("wrong", ("fast", "Fastest", "", 1, ["always"]))
def test_a_policy_misspelt(wrong):
    with pytest.raises(ValueError, match=r"\[mlx_flash.patch\] policy: expected one of fastest, always, or None, got"):
        mlx_flash.patch(policy=wrong)
    assert not hasattr(mx.grad, "__wrapped__"), "nothing was replaced"


@pytest.mark.simulator
def test_quantized_caches_are_served_by_a_rule_too(reference):
    from mlx_lm.models import base

    k = mx.quantize(mx.random.normal((1, 2, 48, 64), key=mx.random.key(1)), group_size=64, bits=8)
    q = mx.random.normal((1, 4, 40, 64), key=mx.random.key(2))
    want = base.quantized_scaled_dot_product_attention(q + 0, k, k, 0.125, "causal")
    with use_backend("simulator", "apple9"), mlx_flash.patch(policy="fastest") as report:
        close(base.quantized_scaled_dot_product_attention(q + 0, k, k, 0.125, "causal"), want)
    assert dict(report.rules) == {("quantized prefill", "quantized cache"): 1}
