"""The names that a text may use, and the names that it may not define."""

from __future__ import annotations

from .functions import CONSTANTS, FUNCTIONS, TYPES
from .syntax import Named

KEYWORDS = frozenset(
    "alignas alignof and and_eq asm atomic atomic_int atomic_float atomic_uint auto bfloat bitand bitor break "
    "case catch char class compl const const_cast constant constexpr continue decltype default delete device do "
    "double dynamic_cast else enum explicit export extern float2 float4 for fragment friend goto half if inline "
    "int2 int4 kernel long mutable namespace new noexcept not not_eq nullptr operator or or_eq private protected "
    "public ray_data register reinterpret_cast return short signed size_t sizeof static static_assert static_cast "
    "struct switch template this thread threadgroup threadgroup_imageblock throw try typedef typeid typename "
    "uchar uint ulong union unsigned ushort using virtual visible void volatile wchar_t while xor xor_eq".split()
)
RESERVED = KEYWORDS | {*FUNCTIONS, *TYPES, *CONSTANTS, "select"}


class Scope:
    """Variables of the language, names given beside the text, and the locals of the open blocks."""

    def __init__(self, variables: tuple[Named, ...], named: tuple[Named, ...]):
        self.outer = {one.name: one for one in (*variables, *named)}
        self.blocks: list[dict[str, Named]] = [{}]
        self.counters: set[str] = set()  # loop variables, which only their loops change

    def find(self, parser, at) -> Named:
        for names in (*reversed(self.blocks), self.outer):
            if at.text in names:
                return names[at.text]
        if at.text in KEYWORDS:
            remedy = "Texts have locals of type float, int and bool, if, for with constant bounds, and return."
            raise parser.source.error(at, "an expression", f"the keyword {at.text!r}", remedy)
        known = ", ".join(self.outer)
        remedy = f"Known are {known}; give arrays and numbers beside the text, such as {at.text}=..."
        raise parser.source.error(at, "a known name", repr(at.text), remedy)

    def declare(self, parser, at, type: str) -> None:
        if at.kind != "name" or at.text in RESERVED:
            raise parser.error("a name for a local", at, "Words of the language cannot be names.")
        if at.text in self.outer or any(at.text in names for names in self.blocks):
            raise parser.error("a name that is not in use", at, "Call the local something else.")
        self.blocks[-1][at.text] = Named(at.text, type)

    def local(self, parser, at) -> Named:
        """The local that a statement assigns to."""
        named = self.find(parser, at)
        if at.text in self.outer or at.text in self.counters:
            remedy = "Variables of the language, arrays, numbers and loop counters cannot be changed: declare a local."
            raise parser.error("the name of a local to assign to", at, remedy)
        return named
