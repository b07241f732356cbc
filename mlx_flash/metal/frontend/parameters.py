"""Metal's rules for the parameters of a kernel: the attribute of a parameter decides which types it may have."""

from collections.abc import Iterator

from .names import Types
from .signature import ATTRIBUTES
from .tokens import Token
from .translation import Parameter

_ATTRIBUTE_TYPES = dict(ATTRIBUTES)
_UNSIGNED = {"uint": "uint", "ushort": "ushort", "uint32_t": "uint", "uint16_t": "ushort"}
_QUALIFIERS = {"const", "volatile", "metal", "::", "thread", "typename"}
_SPACES = {"device", "constant", "threadgroup"}


def misplaced(part: list[Token], parameters: list[Parameter], types: Types, index: int) -> Iterator[str]:
    """Yields the reasons why Metal refuses the last of these parameters.

    part: the tokens of that parameter. types: the types of the text, looked up at `index`.
    """
    new = parameters[-1]
    if any(_same(new, before) for before in parameters[:-1]):
        what = f"threadgroup({new.index})" if new.attribute == "threadgroup" else new.attribute
        yield f"parameter '{new.name}' is a second one with [[{what}]]"
    kind = types.spelt_out(part[:-1], index)
    words = [token.text for token in kind if token.text not in ("const", "volatile")]
    # The type of a template parameter is known in its instances only.
    open_type = any((known := types.find(t.text, index)) and known.parameter for t in part[:-1])
    points = any(token.text in ("*", "&", "[") for token in [*kind, *part])
    if new.attribute in ("buffer", "threadgroup"):
        if not points and not open_type:
            yield f"parameter '{new.name}' of a kernel is a buffer: it has to be a pointer or a reference, not a value"
        elif not (_SPACES & set(words) or any(t.text in ("*", "&") for t in kind) or open_type):
            yield f"parameter '{new.name}' is a buffer: an array has to be in the device or constant address space"
        elif (
            sum(t.text in ("*", "&") for t in kind) > sum(t.text in _SPACES | {"thread"} for t in kind)
            and not open_type
        ):
            yield f"parameter '{new.name}' is a buffer: what it points to needs an address space too"
        elif new.attribute == "threadgroup" and "threadgroup" not in words and not open_type:
            yield f"parameter '{new.name}' is threadgroup memory: it has to point to the threadgroup address space"
    elif new.attribute in _ATTRIBUTE_TYPES and not open_type:
        yield from _position(new, words, points)
        new.axes = _axes(words)
        other = next(
            (one for one in parameters[:-1] if _measured(one) and _measured(new) and one.axes != new.axes), None
        )
        if other:
            reason = f"'{other.name}' has {other.axes}: positions and sizes of one kernel have as many"
            yield f"parameter '{new.name}' has {new.axes} components, and {reason}"


def _measured(parameter: Parameter) -> bool:
    """Whether the parameter is a position or a size in the grid with a known number of components."""
    return parameter.axes > 0 and _ATTRIBUTE_TYPES.get(parameter.attribute) == "uint3"


def _axes(words: list[str]) -> int:
    """The number of components of a position of this type."""
    vector = next((word for word in words if word[-1] in "23" and not word.startswith("vec")), None)
    return int(vector[-1]) if vector else 1


def _same(a: Parameter, b: Parameter) -> bool:
    if a.attribute != b.attribute or a.attribute == "buffer":
        return False
    return a.attribute != "threadgroup" or (a.index == b.index >= 0 and not a.condition and not b.condition)


def _position(new: Parameter, words: list[str], points: bool) -> Iterator[str]:
    words = [word for word in words if word not in _QUALIFIERS]
    vectors = _ATTRIBUTE_TYPES[new.attribute] == "uint3"
    wanted = "ushort or uint, or a vector of two or three of them" if vectors else "ushort or uint"
    if points or not _fits(words, vectors):
        yield f"parameter '{new.name}' with [[{new.attribute}]] has to be {wanted}, not {' '.join(words) or 'this'}"


def _fits(words: list[str], vectors: bool) -> bool:
    """Whether this is an unsigned integer of 16 or 32 bits or, if `vectors`, a vector of two or three of them."""
    plain = [word for word in words if word != "int"] if "unsigned" in words else words
    if plain in (["unsigned"], ["unsigned", "short"], ["short", "unsigned"]):
        return True
    if len(words) == 1:
        scalar = words[0].rstrip("123") if words[0] not in _UNSIGNED else words[0]
        return words[0] in _UNSIGNED or (vectors and scalar in ("uint", "ushort") and words[0][-1] in "23")
    vector = len(words) == 6 and words[0] == "vec" and words[1] == "<" and words[3] == ","
    return vectors and vector and words[2] in _UNSIGNED and words[4] in ("2", "3")
