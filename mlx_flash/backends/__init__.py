"""Backends: where a kernel runs. A backend runs one kind of kernel on arrays and knows nothing of its caller.

"metal" compiles the kernels' text with MLX on an Apple GPU; "cuda" compiles the same text for an NVIDIA GPU;
"simulator" runs it on the CPU; "reference" computes the same mathematics with plain mx operations.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass, replace
from functools import lru_cache

import mlx.core as mx

from ..common import machine
from ..common.environment import STORED, stored_name, variable
from ..common.errors import UnsupportedProblem, warn
from ..common.machine import metal_gpu, why_no_metal
from ..kernels.devices import FAMILIES, TABLE_PREFIX, Family, Tuned


@dataclass(frozen=True, eq=False)  # looked up in every call: hashed by identity
class Backend:
    """A place to run kernels, and its capabilities.

    family: selects the rows of the kernel tables; None on a backend without kernels, whose plans are None too.
    run(kind, plan, problem, inputs, stream): the outputs of one kind of kernel, in order.
    gpu: kernels run on a GPU of this machine.
    decodes: the backend has the decoding kernel.
    dequantizes: its kernels read quantized keys and values.
    dequantizes_first: quantized keys and values that do not lie in pages are dequantized before attention where more
        queries read them than decoding serves, since its matrix units are so fast that dequantizing a block again for
        each block of queries would take longer, and where its matrix units do not serve them.
    replays: launches cost the host so much time that calls replay a compiled graph.
    asks_strides: strides of operands that are not contiguous cost a launch of their own.
    exported: what MLX's own mx.export_function records of its kernels is of use, so that calls look whether it traces.
    guard(plan): the verdict on a kernel, found before its first use; None where kernels are used without a probe.
    falls_back: the reference takes the place of kernels that failed; otherwise such calls raise an error.
    note: why this machine cannot use the family's matrix unit, for `explain`; "" if it can.
    """

    name: str
    family: Family | None
    run: Callable
    gpu: bool = False
    decodes: bool = False
    dequantizes: bool = False
    dequantizes_first: bool = False
    replays: bool = False
    asks_strides: bool = False
    exported: bool = True
    guard: Callable | None = None
    falls_back: bool = False
    note: str = ""


# The capabilities of each backend, also known before it is created (`explain` may describe another machine).
CAPABILITIES = {
    "metal": {"gpu": True, "decodes": True, "dequantizes": True},
    "cuda": {
        "gpu": True, "decodes": True, "dequantizes": True, "dequantizes_first": True, "replays": True,
        "asks_strides": True, "exported": False,
    },
    "simulator": {"decodes": True, "dequantizes": True},
    "reference": {},
}  # fmt: skip
NAMES, TABLES = tuple(CAPABILITIES), ("own", "original")
CPU_DEFAULT, CPU_STREAM = "the default device is the CPU", "a stream of the CPU"


@lru_cache
def backend(name: str, family: str | None = None, falls_back: bool = False) -> Backend:
    """The backend with this name. `falls_back`: see Backend; for a default that nobody chose by name.

    Raises ValueError for an unknown name or family, UnsupportedProblem if the backend cannot run on this machine.
    """
    if falls_back and name != "metal":
        return backend(name, family)
    if name not in NAMES:
        raise ValueError(f"[mlx_flash] backend: expected one of {', '.join(NAMES)}, got {name!r}. Check the spelling.")
    if family is not None and family not in FAMILIES:
        raise ValueError(
            f"[mlx_flash] family: expected one of {', '.join(FAMILIES)}, got {family!r}. See mlx_flash.explain."
        )
    if name == "reference":
        from .reference import run

        return Backend(name, None, run)
    if name == "cuda":
        from .cuda import family_here, ready, run

        if reason := ready(family):
            raise UnsupportedProblem(f'[mlx_flash] backend "cuda": {reason}')
        found = FAMILIES[family] if family else family_here()
        # Products of Metal have no counterpart there: kernels for M5 multiply as those for M4.
        found = replace(found, tensor="") if found.tensor == "nax" else found
        return Backend(name, found, run, **CAPABILITIES[name])
    if name == "simulator":
        from .simulator import ready, run

        if reason := ready():
            raise UnsupportedProblem(f'[mlx_flash] backend "simulator": {reason}')
        return Backend(name, FAMILIES[family or "apple9"], run, **CAPABILITIES[name])
    from .guard import verdict
    from .metal import family_here, record, run
    from .neural import available

    if family and not FAMILIES[family].apple:
        raise UnsupportedProblem(
            f'[mlx_flash] backend "metal": the kernels of {family} are NVIDIA\'s. Name a family of Apple, or none.'
        )
    if metal_gpu():
        found, note = available(FAMILIES[family] if family else family_here())
        return Backend(name, found, run, **CAPABILITIES[name], guard=verdict, falls_back=falls_back, note=note)
    if family is None:
        why = f" that MLX can use ({why_no_metal()})" if mx.metal.is_available() else ""
        raise UnsupportedProblem(
            f'[mlx_flash] backend "metal": this machine has no Metal GPU{why}. Use "simulator" or "reference", or name '
            "the family of the Mac that mx.export_function writes for."
        )
    # An export made here may run on any GPU of the family, whose matrix unit cannot be probed here.
    found = replace(FAMILIES[family], tensor="") if FAMILIES[family].tensor else FAMILIES[family]
    return Backend(name, found, record, **CAPABILITIES[name] | {"gpu": False})


@lru_cache
def _on_metal() -> tuple[str, str]:
    if reason := why_no_metal():
        warn(
            f"mlx_flash finds no GPU: {reason}. Attention runs as plain mx operations, and MLX on the CPU after "
            "mx.set_default_device(mx.cpu).",
            UserWarning,
        )
        return "reference", f"the default where MLX finds no Metal GPU: {reason}"
    return "metal", "the default: this machine has a Metal GPU"


@lru_cache
def _on_cuda() -> tuple[str, str]:
    try:
        backend("cuda")
    except UnsupportedProblem as error:
        warn(f"{error}. Attention runs as plain mx operations.", UserWarning)
        return "reference", f"the default where this fails: {error}"
    return "cuda", "the default: this machine has an NVIDIA GPU"


def of_machine() -> tuple[str, str]:
    """(name, reason) of the backend for this machine's GPU; without one, of the reference."""
    if mx.metal.is_available():
        return _on_metal()
    if mx.cuda.is_available():
        return _on_cuda()
    return "reference", 'the default without a GPU; use_backend("simulator") runs the kernels on the CPU'


def default(stream=None) -> tuple[str, str]:
    """(name, reason) of the backend that is used if none is named. Where a call belongs to the CPU, as MLX's own
    operations do then, it is the reference, on any machine. `stream`: the stream or device of the call."""
    found = of_machine()
    if CAPABILITIES[found[0]].get("gpu") and machine.on_cpu(stream):
        return "reference", f"plain mx operations, as {CPU_DEFAULT if stream is None else CPU_STREAM}"
    return found


def left_to_cpu(stream=None) -> str:
    """Why a call belongs to the CPU although this machine has a GPU; "" if it does not, or if a backend was chosen by
    name, which a default device does not overrule."""
    if not machine.on_cpu(stream):
        return ""
    leaves = stream is not None and current_backend().gpu if named() else CAPABILITIES[of_machine()[0]].get("gpu")
    return (CPU_DEFAULT if stream is None else CPU_STREAM) if leaves else ""


def kernel_backend() -> str:
    """The name of the backend that runs kernels on this machine: that of its GPU, or the simulator without one."""
    return of_machine()[0] if of_machine()[0] != "reference" else "simulator"


@lru_cache
def with_table(chosen: Backend, table: str | None) -> Backend:
    """The backend with the kernel rows of a table: "own", "original", or None for no change."""
    if table not in (None, *TABLES):
        raise ValueError(f'[mlx_flash] table: expected "own", "original" or None, got {table!r}. Check the spelling.')
    if table is None or chosen.family is None:
        return chosen
    rows = chosen.family.table.removeprefix(TABLE_PREFIX)
    rows = TABLE_PREFIX + rows if table == "original" else rows
    return replace(chosen, family=replace(chosen.family, table=rows, tuned=Tuned()))


BACKEND, FAMILY = stored_name("MLX_FLASH_BACKEND"), stored_name("MLX_FLASH_FAMILY")
# The choices in force in this context, the latest last: (the use_backend it belongs to, its backend, is it a block's?).
_choices: ContextVar[tuple[tuple[use_backend, Backend, bool], ...]] = ContextVar("mlx_flash_backend", default=())
choices_here = _choices.get  # the same object for as long as nobody chooses another backend


def named() -> bool:
    """Whether a backend was chosen by name, by use_backend or by MLX_FLASH_BACKEND."""
    return bool(_choices.get() or variable("MLX_FLASH_BACKEND"))


def current_backend(stream=None) -> Backend:
    """The backend chosen by use_backend, else by MLX_FLASH_BACKEND, else the default for a call on this stream or
    device, or on MLX's default device."""
    choices = _choices.get()
    if choices:
        return choices[-1][1]
    if BACKEND not in STORED and FAMILY not in STORED:  # found in every call: four function calls less
        return _unnamed(machine.on_cpu(stream))
    named = variable("MLX_FLASH_BACKEND")
    return backend(named or default(stream)[0], variable("MLX_FLASH_FAMILY") or None, not named)


@lru_cache
def _unnamed(on_cpu: bool) -> Backend:
    """The default for calls that belong to the CPU, and for the others."""
    return backend("reference" if on_cpu else of_machine()[0], None, True)


def forget() -> None:
    """Drops what is remembered about this machine's backends: later calls ask anew, and warn anew."""
    for found in (backend, _unnamed, _on_metal, _on_cuda):
        found.cache_clear()


class use_backend:
    """Chooses the backend of the calls that follow, or of a block: ``with use_backend("simulator"): ...``.

    Args:
        name: "metal", "cuda", "simulator" or "reference". A backend chosen by name never falls back to another.
        family: the GPU family whose kernels run ("apple7" for M1, "apple8" M2, "apple9" M3 and M4, "apple10" M5,
            "sm80" NVIDIA Ampere and later, "sm90" Hopper); None means this machine's on metal and cuda, "apple9" on
            the simulator. Any family runs on cuda and on the simulator. With a family of Apple, "metal" can be chosen
            where there is no Metal GPU, for mx.export_function: what it writes runs on a Mac.
        table: "own" or "original", the parameter rows of the kernels: our own, or those of metal-flash-attention for
            comparison; NVIDIA's tensor cores have one table. None means our own, after the rows that `python -m
            mlx_flash tune` found on this machine.

    Raises:
        ValueError: unknown name, family or table. UnsupportedProblem: the backend cannot run on this machine.

    The choice holds for the current thread or asyncio task; others follow MLX_FLASH_BACKEND and MLX_FLASH_FAMILY. One
    object can be entered again, nested, and in several threads or tasks; leaving a block takes back that block only.
    """

    def __init__(self, name: str, family: str | None = None, table: str | None = None):
        words = (("backend", name, NAMES), ("family", family, FAMILIES), ("table", table, TABLES))
        for argument, value, known in words:
            if value is not None and not isinstance(value, str):
                raise ValueError(
                    f"[mlx_flash] {argument}: expected one of {', '.join(known)}, got {value!r}. Pass a name."
                )
        self._backend = with_table(backend(name, family), table)
        choices = _choices.get()
        # A `with` block may take this choice over, and restore the one before it when it ends. Older choices outside of
        # blocks can never hold again.
        if [block for *_, block in choices[-2:]] == [False, False]:
            choices = (*choices[:-2], choices[-1])
        _choices.set((*choices, (self, self._backend, False)))

    def __enter__(self) -> Backend:
        choices = _choices.get()
        # An object that was just made turns its own choice into the block's, which ends with the block.
        made_here = choices[-1:] == ((self, self._backend, False),)
        _choices.set((*(choices[:-1] if made_here else choices), (self, self._backend, True)))
        return self._backend

    def __exit__(self, *_) -> None:
        choices = list(_choices.get())
        own = [number for number, (owner, _, block) in enumerate(choices) if owner is self and block]
        if own:  # not in a context that never saw the block begin
            del choices[own[-1]]
            _choices.set(tuple(choices))
