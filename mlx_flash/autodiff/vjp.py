"""Attention as one differentiable function: the forward kernel, with a vjp of the backward kernels.

The outputs O and L are the residuals, so the backward pass runs no second forward pass, and there is no state between
the two. dQ, (dK, dV) and the mask's gradient are separate kernels, of which MLX evaluates the ones that are asked for.
In short sequences all of them read delta from the kernel of dQ, which saves a launch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache, lru_cache, partial
from itertools import compress

import mlx.core as mx

from ..backends import Backend
from ..common.errors import UnsupportedProblem
from ..common.mlx_private import after, in_export_trace
from ..kernels.kept import heads_at_a_time, turn_of
from ..kernels.plan import delta_inside, key_value_kinds, reads_codes
from ..kernels.split_kv import QUERIES
from ..problem.kinds import (
    BACKWARD_KEY_VALUE,
    BACKWARD_MASK,
    BACKWARD_QUERY,
    BACKWARD_QUERY_DELTA,
    DECODE,
    DELTA,
    FORWARD,
    GRADIENTS,
    KEPT_KINDS,
    KernelKind,
)
from ..problem.problem import Problem, Signature
from ..transforms.trace import ASKING, changed, mapped_array, trace
from .beyond import expressible, rules
from .choice import Choice, all_serve, choose
from .decoding import Decoding
from .launching import run_kernel
from .operands import SUM, array_inputs, contiguous, dequantized, kernel_inputs, problem_of_arrays
from .refusals import (
    FORWARD_ONLY,
    NO_JVP,
    NO_PAGES,
    NO_SECOND,
    NO_VMAP,
    ahead,
    custom,
    guard,
    once,
    passed_on,
    refuse_shapeless,
    traced,
    zero,
)
from .statistics import sinks_gradient, with_lse_gradient
from .training import ShortSteps
from .turns import in_turns, of_kept
from .vmap import mapped, stand_in

Arrays = tuple[mx.array, ...]
LENGTHS_KEPT = 64  # lengths of which an Attention remembers the way of their gradients
OWN = frozenset({"L", "delta"})  # row-contiguous as kernels write them, which is how others read them


class Attention:
    """The kernels of one signature on one backend, as functions of arrays of any lengths, with gradients.

    `run` takes a kind of kernel and its arrays, in order: those of Q, K, V, dO, L and delta that the kind has, then the
    operands that `names` lists. L [B, Hq, Lq, 2] is the float32 row statistic of statistics.py. `with_lse`: the caller
    sees L, so gradients flow through it. Quantized operands have no gradients.
    """

    def __init__(self, signature: Signature, names: tuple[str, ...], backend: Backend, stream=None, with_lse=False):
        self.signature, self.names, self.backend, self.stream = signature, names, backend, stream
        self.with_lse = with_lse
        self._vjp, self._jvp = self._backward, NO_JVP
        variants = signature.variants
        if variants.quantization or variants.page or variants.pieces:
            self._vjp = self._jvp = FORWARD_ONLY if variants.quantization else NO_PAGES
        self._key_value_kinds = key_value_kinds(signature, backend.family)
        # Gradients may take the short way of training.py.
        self._simple = variants.plain and not names and not with_lse and backend.family is not None
        self._reads, self._followed = cache(self._reads_of), cache(self._followed_of)
        self._decodes = backend.decodes and not signature.variants.dropout
        self._dequantizes_first = bool(variants.quantization and backend.dequantizes_first and not variants.page)
        self._reads_codes = self._dequantizes_first and reads_codes(signature, backend.family)
        self._choices: dict[object, Choice] = {}  # by kind, and in decoding by the number of queries
        self._kept_heads: dict[tuple, int] = {}  # by the shapes of Q and K
        self._short: dict[tuple, ShortSteps | None] = {}  # by the same
        self.followed = True  # whether something traced the last call, or may trace the first
        self.refused = ""  # why a kernel of this signature is not used, if one is not
        self._guard, self._ahead = guard(self._jvp), ahead(self._jvp)
        self._function, self._stand_in = cache(self._differentiable), cache(self._mappable)
        self._function_beyond, self._expressible = cache(self._differentiable_beyond), expressible(names)
        self._kept_beyond = cache(self._kept_differentiable_beyond)

    def run(self, kind: KernelKind, *arrays: mx.array, problem: Problem | None = None) -> Arrays:
        """The outputs of one kind of kernel, differentiable where something traces. `problem`: None to read it off the
        arrays."""
        if kind is not FORWARD:
            arrays = tuple([contiguous(one) if name in OWN else one for name, one in zip(self._reads(kind), arrays)])
        self.followed = followed = traced()
        if not followed:
            return self._kernel(kind, *arrays, problem=problem)  # outside of traces no rules are needed
        if kind is FORWARD:
            return self.follow(*arrays)
        function_of, arrays = self._traced(self._followed(kind), *arrays)
        return function_of(kind)(*arrays)

    def follow(self, *arrays: mx.array) -> Arrays:
        """`run` of the forward kernel where something traces."""
        plain = self._simple and trace.batched is trace.export is None
        short = self._short_of(*arrays[:2]) if plain else None
        if short is not None:
            alone = trace.only_gradient
            if alone is not None:
                alone.used = True
                return short.alone(*arrays)
            trace.asks = ASKING
        if plain and not trace.beyond and not self.backend.exported:  # what the lines below would come to
            refuse_shapeless()
            return self._function(FORWARD)(*arrays, self._ahead(*arrays))
        function_of, arrays = self._traced(self._followed(FORWARD), *arrays, forward=True)
        return function_of(FORWARD)(*arrays)

    def decoding(self, queries: int) -> Decoding | None:
        """The short way of calls with so many queries that no transformation traces; None where there is none, or no
        such call was made before."""
        choice = self._choices.get(queries)
        if choice is None or choice.kind is not DECODE or self.refused or choice.plan.casts or self.names:
            return None
        return Decoding(choice, queries, self.stream) if self.signature.variants.plain else None

    def _traced(
        self, followed: tuple[bool, ...], *arrays: mx.array, forward: bool = False, asked: bool = False
    ) -> tuple[Callable, Arrays]:
        """(the function of each kind of kernel in the current trace, the arrays to pass to it).

        Found once for all kernels of a pass, since asking MLX what it traces costs as much as a launch. `followed`:
        which of the arrays a transformation may follow. `forward`: they are those of the forward kernel. `asked`: the
        forward pass has asked already, in the same trace.
        """
        if not asked:
            refuse_shapeless()
        mapped = mapped_array()
        if mapped is not None:
            return lambda kind: lambda *given: self._stand_in(kind)(*given, mapped), arrays
        # MLX cannot export a custom function.
        if trace.export is not None or (not asked and self.backend.exported and in_export_trace()):
            return lambda kind: partial(self._kernel, kind), arrays
        beyond = trace.beyond and self._expressible
        if forward and not beyond:
            return self._function, (*arrays, self._ahead(*(arrays if all(followed) else compress(arrays, followed))))
        guarded = iter((guard(passed_on) if beyond else self._guard)(*compress(arrays, followed)))
        arrays = tuple([next(guarded) if follows else one for one, follows in zip(arrays, followed)])
        return self._function_beyond if beyond else self._function, arrays

    def _named(self, kind: KernelKind, arrays: Arrays) -> dict[str, mx.array]:
        return dict(zip(self._reads(kind), arrays))

    def _reads_of(self, kind: KernelKind) -> tuple[str, ...]:
        return array_inputs(kind) + (self.names if kind is not DELTA else ())

    def _followed_of(self, kind: KernelKind) -> tuple[bool, ...]:
        """Which of the arrays a transformation may follow: all but those of a block mask, which are constants."""
        return tuple(not name.startswith("block_") for name in self._reads(kind))

    def _kernel(self, kind: KernelKind, *arrays: mx.array, problem: Problem | None = None) -> Arrays:
        """The outputs of the kernel itself, without rules for transformations."""
        named = dict(zip(self._reads(kind), arrays))
        if problem is None:
            problem = problem_of_arrays(self.signature, named)
        if self._dequantizes_first and not (self._reads_codes and self._few(kind, problem)):
            signature, names, arrays = dequantized(self.signature, self.names, named, self.stream)
            return attend(signature, names, self.backend, self.stream, self.with_lse)._kernel(kind, *arrays)
        choice = self._choice(kind, problem)
        if self.refused and trace.built_in and kind is FORWARD:
            raise UnsupportedProblem(f"a kernel failed its test on this machine: {self.refused}")
        kind, backend, plan, _ = choice
        inputs = kernel_inputs(kind, problem, named, self.stream)
        return run_kernel(kind, problem, backend, self.stream, inputs, plan)

    def _few(self, kind: KernelKind, problem: Problem) -> bool:
        """Whether there are so few queries that decoding serves."""
        return kind is FORWARD and self._decodes and problem.query_length <= QUERIES

    def _choice(self, kind: KernelKind, problem: Problem) -> Choice:
        # Decoding has a plan for each number of queries; every other kind has one.
        key = problem.query_length if self._few(kind, problem) else kind
        choice = self._choices.get(key)
        if choice is None:
            choice = self._choices[key] = choose(kind, problem, self.backend)
            self.refused = self.refused or choice.refused
        return choice

    def _differentiable(self, kind: KernelKind) -> Callable:
        """The kernel with its derivative, or of a backward kernel with the error for a second one."""
        if kind is FORWARD:
            function = mx.custom_function(self._forward if self._simple else partial(self._kernel, FORWARD))
            function.vjp(self._vjp)  # `_ahead` has the other rules
            return function
        if kind is not BACKWARD_QUERY_DELTA or "sinks" in self.names:
            return lambda *arrays: once(*self._kernel(kind, *arrays))

        def query_delta(*arrays):
            d_q, delta = self._kernel(kind, *arrays)
            return *once(d_q), delta  # only other kernels read delta

        return query_delta

    def _forward(self, q: mx.array, k: mx.array, v: mx.array, _) -> Arrays:
        short = self._short_of(q, k)
        return self._kernel(FORWARD, q, k, v) if short is None else short.forward(q, k, v)

    def _differentiable_beyond(self, kind: KernelKind) -> Callable:
        """The kernel with the built-in's rules for the derivatives that attention does not have (beyond.py)."""
        vjp, jvp = rules(kind, self.signature)

        def backward(*given):
            with changed(beyond=True):
                return self._backward(*given)

        # stop_gradient makes MLX ask the rule for mx.jvp, instead of the operations inside.
        return custom(
            lambda *arrays: self._kernel(kind, *map(mx.stop_gradient, arrays)),
            backward if kind is FORWARD else vjp, NO_VMAP, jvp,
        )  # fmt: skip

    def _mappable(self, kind: KernelKind) -> Callable:
        """A stand-in for the kernel in a trace of mx.vmap, whose rule runs the kernel. Its last argument is an array
        that is certain to be mapped, so that MLX asks for the rule in any case."""

        def rule(arrays, axes):
            names = self._reads(kind)
            size = arrays[-1].shape[axes[-1]]
            outputs = mapped(partial(self.run, kind), kind, self.signature, size, names, arrays[:-1], axes[:-1])
            return outputs, [0] * len(outputs)

        def backward(primals, cotangents, outputs):
            return (*self._vjp(primals[:-1], cotangents, outputs), mx.zeros_like(primals[-1]))

        def absent(*arrays):
            return tuple(stand_in(kind, problem_of_arrays(self.signature, self._named(kind, arrays[:-1]))))

        return custom(absent, backward if kind is FORWARD else NO_SECOND, rule)

    def _backward(self, primals, cotangents, outputs) -> Arrays:
        """The gradients of the inputs, in order."""
        if self._simple and trace.batched is trace.export is None and not trace.beyond:
            short = self._short_of(*primals[:2])
            if short is not None:
                q, k, v, first = primals
                d_q, others = short.gradients(*after([first], [q]), k, v, *outputs, *self._guard(cotangents[0]))
                return (*once(d_q), *once(*others))
        (q, k, v, *extras), (O, L) = primals, outputs
        if len(extras) > len(self.names):
            (q,) = after([extras.pop()], [q])  # the first array of every kernel here
        # All other arrays passed through a guard before.
        follows_L = self.with_lse or trace.beyond  # the built-in's rules count every array
        function_of, (d_o, d_L) = self._traced((True, follows_L), *cotangents, asked=True)

        def run(kind: KernelKind, *arrays: mx.array) -> Arrays:
            return function_of(kind)(*arrays)

        heads = self._heads_kept(q, k)
        # The gradient of the LSE enters delta between two kernels.
        inside = not heads and not self.with_lse and delta_inside(self.signature, self.backend.family, q.shape[2])
        if inside:
            d_q, delta = run(BACKWARD_QUERY_DELTA, q, k, v, O, d_o, L, *extras)
        else:
            (delta,) = run(DELTA, d_o, O)
        if self.with_lse:
            delta = contiguous(with_lse_gradient(delta, L, d_L))
        arrays = (q, k, v, d_o, L, delta, *extras)
        if not inside and not heads:
            (d_q,) = run(BACKWARD_QUERY, *arrays)
        gradients = {name: mx.broadcast_to(zero(extra.dtype), extra.shape) for name, extra in zip(self.names, extras)}
        if self.signature.variants.additive:
            mask = extras[self.names.index("attention_mask")]
            gradients["attention_mask"] = run(BACKWARD_MASK, *arrays)[0].astype(mask.dtype)
        for name, extra in zip(self.names, extras):
            if name.startswith(SUM) and extra.ndim:  # an array without a gradient has a stand-in without axes
                gradients[name] = self._summed(name).run(BACKWARD_MASK, *arrays)[0]
        if "sinks" in self.names:
            sinks = extras[self.names.index("sinks")]
            gradients["sinks"] = sinks_gradient(sinks, L, delta, self.signature.lacking_scale)
        three = self._five_products(heads, arrays, run) if heads else (d_q, *self.key_value(arrays, run))
        return (*three, *gradients.values())

    def _short_of(self, q: mx.array, k: mx.array) -> ShortSteps | None:
        """The short way of calls with these lengths, None where there is none."""
        shapes = q.shape, k.shape
        found = self._short.get(shapes, ...)  # found may be None
        if found is ...:
            if len(self._short) >= LENGTHS_KEPT:
                self._short.clear()
            found = self._short[shapes] = self._shortened(q, k)
        return None if self.refused else found

    def _shortened(self, q: mx.array, k: mx.array) -> ShortSteps | None:
        if not delta_inside(self.signature, self.backend.family, q.shape[2]) or self._heads_kept(q, k):
            return None
        problem = problem_of_arrays(self.signature, {"Q": q, "K": k})
        kinds = (FORWARD, BACKWARD_QUERY_DELTA, *self._key_value_kinds)
        choices = [self._choice(kind, problem) for kind in kinds]
        own = choices[0].kind is FORWARD and all(one.backend is self.backend for one in choices)
        return ShortSteps(problem, choices, self.stream) if own else None

    def _heads_kept(self, q: mx.array, k: mx.array) -> int:
        """Key heads whose P and dS are kept at a time for gradients, 0 for none."""
        if self.backend.family is None or mapped_array() is not None:
            return 0
        shapes = q.shape, k.shape
        found = self._kept_heads.get(shapes)
        if found is None:
            if len(self._kept_heads) >= LENGTHS_KEPT:
                self._kept_heads.clear()
            problem = problem_of_arrays(self.signature, {"Q": q, "K": k})
            heads = heads_at_a_time(problem, self.backend.family)
            serve = heads and all_serve(KEPT_KINDS, turn_of(problem, heads), self.backend)
            found = self._kept_heads[shapes] = heads if serve else 0
        return found

    def _five_products(self, heads: int, arrays: Arrays, run: Callable) -> Arrays:
        """dQ, dK and dV by kernels between which P and dS are kept, for so many key heads at a time."""
        if trace.beyond and self._expressible:
            return self._kept_beyond(heads)(*arrays)
        if heads == self.signature.key_heads:
            return of_kept(arrays, run)
        return in_turns(self.signature, heads, arrays, lambda part: self._of(part).run)

    def _kept_differentiable_beyond(self, heads: int) -> Callable:
        """The same with the built-in's rules for second derivatives, which know dQ, dK and dV, but neither P nor dS."""
        vjp, jvp = rules(GRADIENTS, self.signature)

        def function(*arrays):
            stopped = tuple(map(mx.stop_gradient, arrays))
            return in_turns(self.signature, heads, stopped, lambda part: self._of(part)._kernel)

        return custom(function, vjp, NO_VMAP, jvp)

    def _summed(self, name: str) -> Attention:
        """The kernels that sum the score's derivative in one of its arrays. `name`: the stand-in of the array."""
        variants = self.signature.variants
        seed = 1 + variants.score.operands.index(name.removeprefix(SUM))
        signature = replace(self.signature, variants=replace(variants, seed=seed))
        return self._of(signature)

    def _of(self, signature: Signature) -> Attention:
        return attend(signature, self.names, self.backend, self.stream, self.with_lse)

    def key_value(self, arrays: Arrays, run: Callable | None = None) -> Arrays:
        """dK and dV, by one kernel or by one each. `run`: in place of this object's own, for the current trace."""
        run = run or self.run
        if len(self._key_value_kinds) == 1:
            return tuple(run(BACKWARD_KEY_VALUE, *arrays))
        named, extras = dict(zip(("Q", "K", "V", "dO", "L", "delta"), arrays)), arrays[6:]
        own = [[named[name] for name in kind.inputs if name in named] for kind in self._key_value_kinds]
        return tuple(one for kind, inputs in zip(self._key_value_kinds, own) for one in run(kind, *inputs, *extras))


attend = lru_cache(maxsize=1024)(Attention)
