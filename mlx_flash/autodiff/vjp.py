"""Attention as one differentiable function: the forward kernel, with a vjp of the backward kernels.

The outputs O and L are the residuals, so the backward pass runs no second forward pass, and there is no state between
the two. dQ, (dK, dV) and the mask's gradient are separate kernels, of which MLX evaluates the ones that are asked for.
In short sequences all of them read delta from the kernel of dQ, which saves a launch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache, lru_cache, partial

import mlx.core as mx

from ..backends import Backend
from ..common.errors import UnsupportedProblem
from ..common.mlx_private import after, in_export_trace, in_shapeless_trace, in_trace
from ..kernels import mask_map
from ..kernels.kept import heads_at_a_time, turn_of
from ..kernels.plan import Plan, delta_inside, key_value_kinds, plan_of, reads_codes
from ..kernels.split_kv import QUERIES
from ..problem.kinds import (
    BACKWARD_KEY_KEPT,
    BACKWARD_KEY_VALUE,
    BACKWARD_MASK,
    BACKWARD_QUERY,
    BACKWARD_QUERY_DELTA,
    BACKWARD_QUERY_KEEPING,
    BACKWARD_VALUE_KEPT,
    COMBINE,
    DECODE,
    DELTA,
    FORWARD,
    GRADIENTS,
    KEPT_KINDS,
    MASK_MAP,
    KernelKind,
)
from ..problem.problem import Problem, Signature
from ..transforms.trace import changed, mapped_array, trace
from .beyond import expressible, rules
from .choice import Choice, all_serve, choose
from .decoding import Decoding, joining
from .operands import SUM, array_inputs, dequantized, kernel_inputs, problem_of_arrays
from .statistics import sinks_gradient, with_lse_gradient
from .vmap import mapped, output_dtype, stand_in

Arrays = tuple[mx.array, ...]
LENGTHS_KEPT = 64  # lengths of which an Attention remembers how many heads keep P and dS


def run_kernel(
    kind: KernelKind, problem: Problem, backend: Backend, stream, inputs: dict, plan: Plan | None = None
) -> Arrays:
    """The outputs of one kind of kernel: O, dQ, dK and dV in the problem's dtype, the others float32. Where decoding
    splits the keys into several parts, they are those of `combine`. `plan`: None to look it up."""
    if plan is None and backend.family:
        plan = plan_of(kind, problem, backend.family)
    if kind is DECODE:
        launch = plan.launch(problem)
        inputs["decode_params"] = launch.decode_params
    if problem.signature.variants.mask and plan is not None and "mask_map" in plan.kernel.inputs:
        inputs["mask_map"] = map_of_mask(kind, problem, backend, stream, inputs["attention_mask"])
    outputs = backend.run(kind, plan, problem, inputs, stream)
    if kind is DECODE and launch.parts > 1:
        kind, (plan, parts) = COMBINE, joining(plan, problem, outputs)
        outputs = backend.run(kind, plan, problem, parts, stream)
    if plan is not None and not plan.casts:
        return tuple(outputs)
    # Kernels write float32 where they page an accumulator.
    dtypes = [output_dtype(name, problem) for name in kind.outputs]
    return tuple([one if one.dtype == to else one.astype(to, stream=stream) for one, to in zip(outputs, dtypes)])


def map_of_mask(kind: KernelKind, problem: Problem, backend: Backend, stream, mask: mx.array) -> mx.array:
    """The map by which a kernel for tensor cores leaves out blocks that its array mask hides; in short calls, where it
    would cost more than it saves, a map that leaves out none."""
    if not mask_map.pays(kind, problem):
        return mask_map.unknown(problem)
    own = mask[tuple(slice(extent) for extent in problem.mask_shape)]
    return mask_map.spread(problem, run_kernel(MASK_MAP, problem, backend, stream, {"attention_mask": own})[0])


def traced() -> bool:
    """Whether a transformation traces, so that a kernel needs rules for it."""
    return trace.batched is not None or trace.export is not None or in_trace()


def _refuse(what: str, *_, function: str = "attention"):
    raise UnsupportedProblem(f"[mlx_flash.{function}] {what}")


def refuse_shapeless() -> None:
    """Raises UnsupportedProblem in a shapeless trace: kernels recorded here fit one set of shapes only."""
    if in_shapeless_trace():
        _refuse(
            "shapeless compilation and export (shapeless=True) are not available, since kernels are chosen by shapes: "
            "leave shapeless out, and MLX traces once for each shape."
        )


NO_JVP = partial(_refuse, "forward-mode derivatives (mx.jvp) are not available: use mx.grad or mx.vjp.")
NO_VMAP = partial(
    _refuse,
    "mx.vmap cannot map attention by itself: use mlx_flash.vmap, or mx.vmap inside `with "
    "mlx_flash.transforms.installed():`. Nothing maps through a custom function without a vmap rule: map inside of it.",
)
_NO_SECOND = partial(_refuse, "gradients of gradients are not available: attention can be differentiated once.")
_FORWARD_ONLY = partial(
    _refuse, "it is forward only: for derivatives, dequantize and call attention.", function="quantized_attention"
)

_NO_PAGES = partial(_refuse, "derivatives through pages are not available: gather keys and values, and pass no pages.")


def custom(function: Callable, vjp: Callable, vmap: Callable, jvp: Callable = NO_JVP) -> Callable:
    wrapped = mx.custom_function(function)
    wrapped.vjp(vjp)
    wrapped.jvp(jvp)
    wrapped.vmap(vmap)
    return wrapped


# An identity that stands in front of every kernel in a trace. mx.vmap and mx.jvp go through the operations inside a
# custom function before they ask the function for its rule, so this one must refuse before a kernel does, less clearly.
# MLX's time for it grows with the square of the arrays.
@cache
def _guard(jvp: Callable) -> Callable:
    return custom(lambda *arrays: arrays, lambda primals, cotangents, outputs: tuple(cotangents), NO_VMAP, jvp)


@cache
def _zero(dtype: mx.Dtype) -> mx.array:
    return mx.array(0, dtype)  # from the host's memory, so that every thread can use it


# Behind every kernel of the backward pass: the first operation that a second derivative meets.
_once = custom(lambda *gradients: gradients, _NO_SECOND, NO_VMAP)


def _passed_on(primals, tangents):
    return tuple(mx.zeros_like(one) if tangent is None else tangent for one, tangent in zip(primals, tangents))


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
            self._vjp = self._jvp = _FORWARD_ONLY if variants.quantization else _NO_PAGES
        self._key_value_kinds = key_value_kinds(signature, backend.family)
        self._reads, self._followed = cache(self._reads_of), cache(self._followed_of)
        self._decodes = backend.decodes and not signature.variants.dropout
        self._dequantizes_first = bool(variants.quantization and backend.dequantizes_first and not variants.page)
        self._reads_codes = self._dequantizes_first and reads_codes(signature, backend.family)
        self._choices: dict[object, Choice] = {}  # by kind, and in decoding by the number of queries
        self._kept_heads: dict[tuple, int] = {}  # by the shapes of Q and K
        self.refused = ""  # why a kernel of this signature is not used, if one is not
        self._guard = _guard(self._jvp)
        self._function, self._stand_in = cache(self._differentiable), cache(self._mappable)
        self._function_beyond, self._expressible = cache(self._differentiable_beyond), expressible(names)
        self._kept_beyond = cache(self._kept_differentiable_beyond)

    def run(self, kind: KernelKind, *arrays: mx.array, problem: Problem | None = None) -> Arrays:
        """The outputs of one kind of kernel, differentiable where something traces. `problem`: None to read it off the
        arrays."""
        if not traced():
            return self._kernel(kind, *arrays, problem=problem)  # outside of traces no rules are needed
        function_of, arrays = self._traced(self._followed(kind), *arrays)
        return function_of(kind)(*arrays)

    def decoding(self, queries: int) -> Decoding | None:
        """The short way of calls with so many queries that no transformation traces; None where there is none, or no
        such call was made before."""
        choice = self._choices.get(queries)
        if choice is None or choice.kind is not DECODE or self.refused or choice.plan.casts or self.names:
            return None
        return Decoding(choice, queries, self.stream) if self.signature.variants.plain else None

    def _traced(self, followed: tuple[bool, ...], *arrays: mx.array, asked: bool = False) -> tuple[Callable, Arrays]:
        """(the function of each kind of kernel in the current trace, the arrays to pass to it).

        Found once for all kernels of a pass, since asking MLX what it traces costs as much as a launch. `followed`:
        which of the arrays a transformation may follow. `asked`: the forward pass has asked already, in the same trace.
        """
        if not asked:
            refuse_shapeless()
        mapped = mapped_array()
        if mapped is not None:
            return lambda kind: lambda *given: self._stand_in(kind)(*given, mapped), arrays
        if trace.export is not None or (not asked and in_export_trace()):  # MLX cannot export a custom function
            return lambda kind: partial(self._kernel, kind), arrays
        beyond = trace.beyond and self._expressible
        guard = _guard(_passed_on) if beyond else self._guard
        guarded = iter(guard(*[one for one, follows in zip(arrays, followed) if follows]))
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
        # Decoding has a plan for each number of queries; every other kind has one.
        few = kind is FORWARD and self._decodes and problem.query_length <= QUERIES
        if self._dequantizes_first and not (few and self._reads_codes):
            signature, names, arrays = dequantized(self.signature, self.names, named, self.stream)
            return attend(signature, names, self.backend, self.stream, self.with_lse)._kernel(kind, *arrays)
        key = problem.query_length if few else kind
        choice = self._choices.get(key)
        if choice is None:
            choice = self._choices[key] = choose(kind, problem, self.backend)
            self.refused = self.refused or choice.refused
        if self.refused and trace.built_in and kind is FORWARD:
            raise UnsupportedProblem(f"a kernel failed its test on this machine: {self.refused}")
        kind, backend, plan, _ = choice
        inputs = kernel_inputs(kind, problem, named, self.stream)
        return run_kernel(kind, problem, backend, self.stream, inputs, plan)

    def _differentiable(self, kind: KernelKind) -> Callable:
        """The kernel with its derivative, or of a backward kernel with the error for a second one."""
        if kind is FORWARD:
            return custom(partial(self._kernel, FORWARD), self._vjp, NO_VMAP, self._jvp)
        if kind is not BACKWARD_QUERY_DELTA or "sinks" in self.names:
            return lambda *arrays: _once(*self._kernel(kind, *arrays))

        def query_delta(*arrays):
            d_q, delta = self._kernel(kind, *arrays)
            return *_once(d_q), delta  # only other kernels read delta

        return query_delta

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

        return custom(absent, backward if kind is FORWARD else _NO_SECOND, rule)

    def _backward(self, primals, cotangents, outputs) -> Arrays:
        """The gradients of the inputs, in order."""
        (q, k, v, *extras), (O, L) = primals, outputs
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
            delta = with_lse_gradient(delta, L, d_L)
        arrays = (q, k, v, d_o, L, delta, *extras)
        if not inside and not heads:
            (d_q,) = run(BACKWARD_QUERY, *arrays)
        gradients = {name: mx.broadcast_to(_zero(extra.dtype), extra.shape) for name, extra in zip(self.names, extras)}
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
            return self.of_kept(arrays, run)
        return self._in_turns(heads, arrays, lambda own: own.run)

    def _kept_differentiable_beyond(self, heads: int) -> Callable:
        """The same with the built-in's rules for second derivatives, which know dQ, dK and dV, but neither P nor dS."""
        vjp, jvp = rules(GRADIENTS, self.signature)

        def function(*arrays):
            return self._in_turns(heads, tuple(map(mx.stop_gradient, arrays)), lambda own: own._kernel)

        return custom(function, vjp, NO_VMAP, jvp)

    def _in_turns(self, heads: int, arrays: Arrays, run_of: Callable) -> Arrays:
        """`run_of`: the function that runs the kernels of an Attention."""
        signature, turns, done = self.signature, [], ()
        for begin in range(0, signature.key_heads, heads):
            end = min(begin + heads, signature.key_heads)
            queries, keys = slice(begin * signature.group, end * signature.group), slice(begin, end)
            part = replace(signature, query_heads=queries.stop - queries.start, key_heads=end - begin)
            own = attend(part, self.names, self.backend, self.stream, self.with_lse)
            q, k, v, d_o, L, delta = arrays[:6]
            taken = [q[:, queries], k[:, keys], v[:, keys], *(one[:, queries] for one in (d_o, L, delta))]
            # One turn's memory serves the next. A host that waited for the GPU between turns would take 1 ms for each.
            taken = after(list(done), taken) if done else taken
            done = own.of_kept((*taken, *arrays[6:]), run_of(own))
            turns.append(done)
        return done if len(turns) == 1 else tuple(mx.concatenate(parts, 1) for parts in zip(*turns))

    @staticmethod
    def of_kept(arrays: Arrays, run: Callable) -> Arrays:
        """dQ, dK and dV by kernels of KEPT_KINDS. `arrays`: q, k, v, dO, L, delta, and the operands of `names`."""
        (q, k, _, d_o, *_), extras = arrays, arrays[6:]
        d_q, P, d_S = run(BACKWARD_QUERY_KEEPING, *arrays)
        (d_k,), (d_v,) = run(BACKWARD_KEY_KEPT, q, k, d_S, *extras), run(BACKWARD_VALUE_KEPT, q, k, d_o, P, *extras)
        return d_q, d_k, d_v

    def _summed(self, name: str) -> Attention:
        """The kernels that sum the score's derivative in one of its arrays. `name`: the stand-in of the array."""
        variants = self.signature.variants
        seed = 1 + variants.score.operands.index(name.removeprefix(SUM))
        signature = replace(self.signature, variants=replace(variants, seed=seed))
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
