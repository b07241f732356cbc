"""patch(): mlx_flash in place of mx.fast.scaled_dot_product_attention and similar functions, in unchanged models."""

from __future__ import annotations

import logging
import sys
import threading
from collections import Counter
from collections.abc import Callable

import mlx.core as mx

from ..backends import BACKEND, FAMILY, choices_here
from ..common.environment import STORED
from ..common.errors import InvalidArgument, UnsupportedProblem, wrong
from ..common.scalars import shown, whole
from ..transforms import wrappers
from ..transforms.replacement import LOCK, Replacement, put, take_back
from ..transforms.trace import BUSY, changed, trace
from . import compiled
from .kept import Tally, calls, keep, keep_plain, kept_plain, plain, stored
from .policy import ALWAYS, POLICIES
from .serve import KeptByRule, NotServed, serve_again, serve_attention, serve_quantized

LOGGER = logging.getLogger("mlx_flash")

# Functions with the arguments of mlx-lm's quantized_scaled_dot_product_attention, as (module, name). Each is replaced
# once its module is imported; append those of other packages before patch().
QUANTIZED: list[tuple[str, str]] = [
    ("mlx_lm.models.base", "quantized_scaled_dot_product_attention"),
    ("mlx_vlm.models.base", "quantized_scaled_dot_product_attention"),
]

_active: tuple[patch, ...] = ()  # never modified in place, since calls read it without the lock
_in_place: dict[tuple[str, str], Replacement] = {}  # replacements of the active patches, by (module, name)
_known: dict[tuple[int, str], Replacement] = {}  # every replacement made so far, by (id of the module, name)


class patch:
    """Replaces ``mx.fast.scaled_dot_product_attention`` by `attention`, for a block or until `undo`.

    ``with mlx_flash.patch() as report: ...``, or ``report = mlx_flash.patch(); ...; report.undo()``, or
    ``mlx_flash.unpatch()``, which reverts all patches. Serves ``mlx.nn.MultiHeadAttention`` and every model that calls
    the function, under any name in its module, and the functions for quantized caches of mlx-lm and mlx-vlm, which
    become `quantized_attention`. Neither package is imported for that; one that is imported later is found by the next
    call. ``mlx_flash.integrations.QUANTIZED`` lists these functions; more can be appended.

    Calls that cannot be served, wrong ones included, go to the built-in function, which answers or raises as always; so
    do those inside ``mx.jvp`` or a gradient of a gradient. Defects of this package raise errors. While a patch is
    active, ``mlx_flash.transforms.installed()`` is too.

    Args:
        min_queries: calls with fewer queries go to the built-in: 9 leaves decoding to it.
        policy: "fastest" leaves calls to the built-in where that is fused, linear in memory and as fast, by the rules
            of integrations/policy.py; "always" serves every call that can be served. None means "fastest" on a GPU, and
            "always" without one or where a backend was chosen by name.

    Attributes: served, a Counter of the served calls by kind ("prefill", more than 8 queries, or "decode", and the same
    with "quantized"); rules, a Counter of (kind, the policy's rule that decided) of these calls; built_in, a Counter of
    the reasons why the other calls were left to the built-in; reached, modules that held a replaced function by name
    and were served; out_of_reach, places that hold one and cannot be changed (attributes of classes, defaults of
    functions, partials). They are logged at the end (logger "mlx_flash", level INFO); ``print(report)`` shows them.

    A patch holds for all threads. Patches nest, and a call counts in one of them: the innermost of its own thread, or
    of all threads where its own has none. A compiled function keeps the function that was in place when it was traced,
    and is counted then. Functions that are compiled while a patch is active are traced again, on the CPU once for each
    shape, shapeless or not.

    One difference from the built-in: a query that sees no key gives zeros.
    """

    def __init__(self, min_queries: int = 1, policy: str | None = None):
        least = whole(min_queries)
        if least is None or least < 1:
            remedy = "Pass 1 to serve every call."
            raise wrong("min_queries", "a whole number of at least 1", shown(min_queries), remedy, "patch")
        if policy is not None and (not isinstance(policy, str) or policy not in POLICIES):
            remedy = "Check the spelling, or leave it out: fastest on a GPU."
            raise wrong("policy", f"one of {', '.join(POLICIES)}, or None", shown(policy), remedy, "patch")
        self.min_queries, self.policy = least, policy
        self._served, self._built_in, self._rules = Tally(), Tally(), Tally()
        self.reached: list[str] = []
        self.out_of_reach: list[str] = []
        self._thread = threading.get_ident()
        global _active
        with LOCK:
            if not _active:
                place = "mlx.core.fast", "scaled_dot_product_attention"
                served = [_replacement(place, mx.fast, serve_attention), *_quantized()]
                put([*served, *_others()], holders=True)  # one search of all modules
            _active = (*_active, self)
            _find_quantized()
            for one in _in_place.values():
                self._note(one)

    @property
    def served(self) -> Counter:
        return self._served.counts()

    @property
    def built_in(self) -> Counter:
        return self._built_in.counts()

    @property
    def rules(self) -> Counter:
        return self._rules.counts()

    @property
    def ours(self) -> int:
        """The number of calls served here."""
        return self.served.total()

    def __enter__(self) -> patch:
        return self

    def __exit__(self, *_) -> None:
        self.undo()

    def undo(self) -> None:
        """Reverts this patch; with the last one the built-in returns. A second call does nothing."""
        global _active
        with LOCK:
            if self not in _active:
                return
            _active = tuple(one for one in _active if one is not self)
            if not _active:
                take_back(_others(), holders=True)
                compiled.forget()
                take_back(_in_place.values(), holders=True)
                _in_place.clear()
        LOGGER.info("%s", self)

    def __str__(self) -> str:
        kinds, reasons, by_rule = (counts.most_common() for counts in (self.served, self.built_in, self.rules))
        ours, others = sum(count for _, count in kinds), sum(count for _, count in reasons)
        what = f" ({', '.join(f'{count} {kind}' for kind, count in kinds)})" if kinds else ""
        lines = [f"mlx_flash served {ours} of {ours + others} attention calls{what}"]
        lines += [f'{count} {kind} by rule "{rule}"' for (kind, rule), count in by_rule if rule != ALWAYS.name]
        lines += [f"{count} to the built-in: {reason}" for reason, count in reasons]
        if self.reached:
            lines.append(f"also in the place of the built-in in {', '.join(self.reached)}")
        lines += [f"out of reach: {place} holds the built-in itself" for place in self.out_of_reach]
        return "\n  ".join(lines)

    def _note(self, replacement: Replacement) -> None:
        """Adds the places that held the replaced function to the report."""
        self.reached += sorted({module.__name__ for module, _ in replacement.reached} - set(self.reached))
        self.out_of_reach += [place for place in replacement.out_of_reach if place not in self.out_of_reach]


_compile = Replacement(mx, "compile", lambda name, built_in: compiled.traced_anew(built_in, lambda: bool(_active)))


def _others() -> list[Replacement]:
    """The replacements of a patch besides the functions that it serves."""
    return [*wrappers.REPLACEMENTS, _compile]


def unpatch() -> None:
    """Reverts every patch::

        patch(policy="always")
        out = mx.fast.scaled_dot_product_attention(q, k, v, scale=0.1)  # served by attention
        unpatch()

    Without one it does nothing.
    """
    with LOCK:
        for one in reversed(_active):
            one.undo()


def _replacement(place: tuple[str, str], module, serve: Callable) -> Replacement:
    """The replacement of the function at a place (module, name), until the last patch is reverted. The caller holds the
    lock, and puts it in place."""
    key = (id(module), place[1])
    if key not in _known or _known[key].module is not module:
        _known[key] = Replacement(module, place[1], lambda name, built_in: _served_by(serve, built_in), own=True)
    replacement = _in_place[place] = _known[key]
    return replacement


def _quantized() -> list[Replacement]:
    """Replacements of functions in `QUANTIZED` whose modules have been imported, and that are not yet in place. The
    caller holds the lock."""
    found = []
    for place in QUANTIZED:
        module = sys.modules.get(place[0])
        # A module without the function is still being imported.
        if place not in _in_place and module is not None and hasattr(module, place[1]):
            found.append(_replacement(place, module, serve_quantized))
    return found


def _find_quantized() -> None:
    """Replaces functions in `QUANTIZED` whose modules were imported since the patch began."""
    if all(place in _in_place or place[0] not in sys.modules for place in QUANTIZED):
        return
    with LOCK:
        found = _quantized() if _active else []
        put(found, holders=True)
        for replacement in found:
            for one in _active:
                one._note(replacement)


def _innermost(active: tuple[patch, ...]) -> patch:
    """The one of these patches that a call of this thread belongs to."""
    if len(active) == 1:
        return active[0]
    thread = threading.get_ident()
    return next((one for one in reversed(active) if one._thread == thread), active[-1])


def _served_by(serve: Callable, built_in: Callable) -> Callable:
    """A function that tries `serve` for the patch that is active at each call, and counts. Without a patch, and where
    the patch must not serve, it calls the built-in."""

    # Only functions written in Python can call the other ones that are replaced.
    calls_others = hasattr(built_in, "__code__")

    def call(*args, **kwargs):
        active = _active
        if not active or trace.kept:
            return built_in(*args, **kwargs)
        current = _innermost(active)
        _find_quantized()
        try:
            what, rule, out = serve(current, *args, **kwargs)
        except (NotServed, InvalidArgument, UnsupportedProblem) as error:
            counted = current._built_in[str(error).partition("\n")[0]]
            next(counted)
            if calls_others:
                with changed(kept=True):
                    return built_in(*args, **kwargs)
            out = built_in(*args, **kwargs)
            if isinstance(error, KeptByRule):
                thread = None if len(active) == 1 else threading.get_ident()
                keep(active, thread, counted, out.dtype, *args, **kwargs)
            return out
        counted = current._served[what], current._rules[what, rule.name]
        for one in counted:
            next(one)
        if serve is serve_attention:
            keep_plain(active, None if len(active) == 1 else threading.get_ident(), counted, *args, **kwargs)
        return out

    return _remembering(call, built_in) if serve is serve_attention else call


def _remembering(decide: Callable, built_in: Callable) -> Callable:
    """``mx.fast.scaled_dot_product_attention``: the built-in for calls that `keep` remembers, else `decide`.

    The built-in's own work for a call takes the host as little as 4 us. What is asked here costs about half of one: a
    model makes such a call in every layer. Most calls are like the one before in the same situation, such as a
    gradient, and compared with it; the others are looked up.
    """
    array, absent, none = mx.array, object(), (None,) * 7
    latest: dict[int, tuple] = {}  # by situation

    def call(q=absent, k=absent, v=absent, *more, scale=absent, mask=None, sinks=None, **options):
        situation = trace.situation if BUSY else 0
        queries, values, named, patches, choices, size, count = latest.get(situation, none)
        try:
            if (
                q.shape == queries and v.shape == values and mask is named and sinks is None
                and patches is _active and choices is choices_here() and k.__class__ is array
                and not (more or options) and BACKEND not in STORED and FAMILY not in STORED
            ):  # fmt: skip
                out = built_in(q, k, v, scale=scale, mask=mask)
                if out.itemsize == size:
                    count()
                    return out
            kind = mask if mask is None or mask.__class__ is str else mask.__class__
            found = calls.get((q.shape, v.shape, kind, sinks is None, situation))
        except (AttributeError, TypeError):  # no arrays, or what the built-in refuses
            found = None
        if found is not None:
            patches, thread, choices, backend, family, size, exact, count = found
            if (
                patches is _active and choices is choices_here() and k.__class__ is array and not (more or options)
                and stored(BACKEND) == backend and stored(FAMILY) == family
                and (thread is None or thread == threading.get_ident())
            ):  # fmt: skip
                if sinks is None:
                    out = built_in(q, k, v, scale=scale, mask=mask)
                else:
                    out = built_in(q, k, v, scale=scale, mask=mask, sinks=sinks)
                if out.itemsize == size and (exact is None or out.dtype == exact):
                    if sinks is None and kind is mask and {thread, exact, backend, family} == {None}:
                        latest[situation] = (q.shape, v.shape, mask, patches, choices, size, count)
                    count()
                    return out
        if plain and sinks is None and k.__class__ is v.__class__ is array and not (more or options):
            served = kept_plain(_active, q, v, scale, mask)
            out = served and serve_again(served[0], q, k, v, scale, mask is not None)
            if out is not None:
                served[1](), served[2]()
                return out
        given = {"scale": scale, "mask": mask, "sinks": sinks}
        if v is absent:
            given |= {"q": q, "k": k, "v": v}
        named = {name: value for name, value in given.items() if value is not absent and value is not None}
        return decide(*(() if v is absent else (q, k, v)), *more, **named, **options)

    return call
