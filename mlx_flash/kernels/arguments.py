"""The arguments of a kernel as one Metal struct, and the body that fills it and calls the kernel's function.

MLX passes arguments to a kernel by name, and the shape and the strides of an array only where these names occur in the
text of the body. So the body names all of them, once, and the templates take a struct.
"""

from __future__ import annotations

from ..problem.kinds import BACKWARD_MASK, COMBINE, DECODE, DELTA, MASK_MAP, KernelKind
from ..problem.shards import traversed_operands
from ..problem.variants import ARGUMENT_TYPES

# The types of the struct's members. Arrays are in device memory, because launch.py pads arrays that MLX would pass as
# constants; the constant ones here have fewer than eight elements in every problem.
VIEWS = {"Q", "K", "V", "O", "dO"}
TYPES = {
    **dict.fromkeys(("L", "delta", "O_parts", "L_parts"), "const device float*"),
    **dict.fromkeys(("P", "dS"), "const device Element*"),
    **dict.fromkeys(("decode_params", "extents"), "const constant int*"),
    "scale": "float",
    "mask_map": "Strided<uint8_t>",
    **ARGUMENT_TYPES,
}
# In decoding the rows of a key head are all queries of its group. Those of a single query lie in heads of Q, as the
# call has it; more are packed, Q [B, Hk, G Lq, D], as of one head.
ROW = "Q_shape[1] == K_shape[1] ? Q_strides[2] : Q_strides[1]"
DECODED = f"Q_strides[0], Q_shape[1] / K_shape[1] * Q_strides[1], {ROW}"
LENGTHS = {"Hq": "Q_shape[1]", "Hk": "K_shape[1]", "Lq": "Q_shape[2]", "Lk": "K_shape[2]"}


def lengths(kind: KernelKind, inputs: tuple[str, ...], pieces: bool = False) -> dict[str, str]:
    """The lengths that a kernel reads, and the expressions that give them. `pieces`: traversed operands are shards."""
    if pieces:
        heads, rows, name = ("Hq", "Lq", "Q") if kind.over_keys else ("Hk", "Lk", "K")
        return lengths(kind, inputs) | {heads: f"{name}_shape[2]", rows: f"{name}_shape[0] * {name}_shape[3]"}
    if "pages" in inputs:
        return lengths(kind, ()) | {"Lk": "pages_shape[1] * K_shape[2]"}
    if kind is DELTA:
        return {"Hq": "dO_shape[1]", "Lq": "dO_shape[2]"}
    if kind is MASK_MAP:
        return {name: f"attention_mask_shape[{axis}]" for axis, name in ((1, "Hq"), (2, "Lq"), (3, "Lk"))}
    if kind is COMBINE:
        return {"parts": "O_parts_shape[0]", "rows": "O_parts_shape[1] * O_parts_shape[2] * O_parts_shape[3]"}
    if kind is DECODE:
        rows = "Q_shape[1] / K_shape[1] * Q_shape[2]"
        return LENGTHS | {"B": "Q_shape[0]", "rows": rows, "Lq": "decode_params[0]"}
    return LENGTHS | ({"B": "Q_shape[0]"} if kind is BACKWARD_MASK else {})


def members(
    kind: KernelKind, inputs: tuple[str, ...], pieces: bool = False, gathers: bool = False
) -> dict[str, tuple[str, str]]:
    """Every member of the struct: its type, and the expression that fills it.

    The view of a quantized operand includes its scales and biases, that of a paged operand the table of its pages, and
    that of an operand in shards their length. `gathers`: operands come with their own type and the stride of their
    last axis.
    """
    found = {}
    shards = traversed_operands(kind) if pieces else ()
    paged = ("K", "V") if "pages" in inputs else ()  # operands that the table of pages belongs to
    for name in inputs:
        if name in kind.shapes:
            continue
        parts = [part for part in (f"{name}_scales", f"{name}_biases") if part in inputs]
        strides = "{0}_strides[0], {0}_strides[1], {0}_strides[2]" if name in VIEWS else "{0}_strides"
        strides = DECODED if kind is DECODE and name == "Q" else strides
        if gathers and name in VIEWS:
            own = ", ".join(f"long(sizeof(*{name})) * ({one})" for one in strides.format(name).split(", "))
            found[name] = "View", f"{{(const device uint8_t*){name}, {own}, {name}_strides[3]}}"
            continue
        views = [f"{{{one}, {strides.format(one)}}}" for one in (name, *parts)]
        views += ["{pages, pages_strides}"] if name in paged else []
        if name in VIEWS and parts:
            found[name] = "QuantizedView", f"{{{', '.join(views)}}}"
        elif name in shards:
            own = ", ".join(f"{name}_strides[{axis}]" for axis in (1, 2, 3))
            found[name] = "PiecedView", f"{{{{{name}, {own}}}, {name}_strides[0], int({shards[0]}_shape[3])}}"
        elif name in paged:
            found[name] = "PagedView", f"{{{', '.join(views)}}}"
        elif name == "pages":
            continue
        elif name in VIEWS or TYPES.get(name, "").startswith("Strided"):
            found[name] = TYPES.get(name, "View"), views[0]
        elif name in TYPES:
            found[name] = TYPES[name], name
    return found


def struct(kind: KernelKind, inputs: tuple[str, ...], pieces: bool = False) -> str:
    """The definition of `flash::Arguments`."""
    lines = [f"  {kept} {name};" for name, (kept, _) in members(kind, inputs, pieces).items()]
    return "\n".join(
        ["namespace flash {", "struct Arguments {", *lines, f"  int {', '.join(lengths(kind, inputs))};", "};", "}", ""]
    )


def body(kind: KernelKind, inputs: tuple[str, ...], pieces: bool = False, gathers: bool = False) -> str:
    """The body of the kernel, which MLX puts between its braces."""
    filled = {name: value for name, (_, value) in members(kind, inputs, pieces, gathers).items()}
    filled |= lengths(kind, inputs, pieces)
    scratch = ["alignas(16) threadgroup flash::Element scratch[flash::SCRATCH];"] if kind.tiled else []
    passed = ["args", *kind.outputs, *(["scratch"] if kind.tiled else [])]
    return "\n".join(
        [
            *scratch,
            "flash::Arguments args;",
            *(f"args.{name} = {value};" for name, value in filled.items()),
            f"flash::{kind.template or kind.name}(",
            f"    {', '.join(passed)}, threadgroup_position_in_grid, thread_index_in_threadgroup);",
            "",
        ]
    )
