"""Problems and plans built from numbers, for tests of kernels without a call of attention."""

from dataclasses import replace

from mlx_flash.kernels.plan import Plan, plan_of
from mlx_flash.problem.problem import Problem, Signature
from mlx_flash.problem.variants import Variants


def make_problem(
    batch=1, query_heads=1, key_heads=1, query_length=9, key_length=9, head_dim=64, value_dim=64, dtype="float32",
    scale=0.125, causal=False, mask_shape=None, variants=None,
) -> Problem:  # fmt: skip
    """A Problem with these numbers; `variants`: a Variants, or its fields as a dict."""
    chosen = variants if isinstance(variants, Variants) else Variants(**(variants or {}))
    chosen = replace(chosen, causal=causal or chosen.causal)
    signature = Signature(query_heads, key_heads, head_dim, value_dim, dtype, scale, chosen)
    return Problem(signature, batch, query_length, key_length, mask_shape)


def with_variants(problem: Problem, mask_shape=None, **changes) -> Problem:
    """The problem with other variants."""
    signature = replace(problem.signature, variants=replace(problem.variants, **changes))
    return problem._replace(signature=signature, mask_shape=mask_shape or problem.mask_shape)


def with_signature(problem: Problem, **changes) -> Problem:
    """The problem with other heads, head dimensions, dtype or scale."""
    return problem._replace(signature=replace(problem.signature, **changes))


def launch_of(kind, problem: Problem, family):
    """The launch of one kind of kernel for the problem."""
    return plan_of(kind, problem, family).launch(problem)


__all__ = ["Plan", "launch_of", "make_problem", "plan_of", "with_signature", "with_variants"]
