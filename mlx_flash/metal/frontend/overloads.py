"""A source's own function templates with the names of library functions.

Apple's library has a function for every type, which overload resolution prefers to a template that fits as well. The
library here has templates for vectors, so such a call would be ambiguous. In front of the source's first template of a
name, this adds the functions of that name.
"""

import re
from collections.abc import Iterator

from .names import template_end
from .tokens import Token, matching

FLOATS = ("float", "half")
INTEGERS = ("char", "uchar", "short", "ushort", "int", "uint", "long", "ulong")
# (element types, names, number of arguments), all of one type
_LIBRARY = (
    (FLOATS, "exp exp2 exp10 log log2 log10 sqrt rsqrt sin cos tan asin acos atan sinh cosh tanh asinh acosh atanh "
     "sinpi cospi tanpi floor ceil trunc rint round fabs saturate sign fract length length_squared normalize isnan "
     "isinf isfinite isnormal signbit", 1),
    (FLOATS, "cross", 2),
    (FLOATS, "pow powr atan2 fmod fmin fmax fdim copysign divide step nextafter dot distance distance_squared reflect "
     "isordered isunordered", 2),
    (FLOATS, "fma mix smoothstep fmin3 fmax3 fmedian3 faceforward", 3),
    ((*FLOATS, *INTEGERS), "abs", 1),
    ((*FLOATS, *INTEGERS), "min max", 2),
    ((*FLOATS, *INTEGERS), "clamp min3 max3 median3", 3),
    (INTEGERS, "popcount clz ctz reverse_bits", 1),
    (INTEGERS, "absdiff rotate mulhi hadd rhadd addsat subsat", 2),
    (INTEGERS, "madhi madsat", 3),
)  # fmt: skip
FUNCTIONS = {name: (types, count) for types, names, count in _LIBRARY for name in names.split()}
_WITH_BRACKETS = ("__attribute__", "decltype", "alignas")  # words whose parentheses hold no parameters
_METAL = re.compile(r"\s*#\s*(include|import)\s*<metal")
Edit = tuple[int, int, str]


def overload_edits(tokens: list[Token]) -> Iterator[Edit]:
    """Yields (start, end, new text) for every name of the library that a template outside of namespaces has. Without
    `using namespace metal` a call of it does not mean the library's."""
    named = {name: token for name, token in _templates(tokens) if name in FUNCTIONS or name == "select"}
    if not named or not _opened(tokens):
        return
    for name, token in named.items():
        yield token.start, token.start, f"namespace metal {{ {' '.join(_functions(name))} }} "


def _functions(name: str) -> Iterator[str]:
    if name == "select":
        yield from _selections()
        return
    types, count = FUNCTIONS[name]
    names, given = "abc"[:count], ", ".join("abc"[:count])
    for element in types:
        for extent in (3,) if name == "cross" else (2, 3, 4):
            vector = f"vec<{element}, {extent}>"
            own = f"{name}<{element}>" if name == "cross" else f"{name}<{element}, {extent}>"
            parameters = ", ".join(f"{vector} {one}" for one in names)
            yield f"MSL_INLINE auto {name}({parameters}) {{ return {own}({given}); }}"


def _selections() -> Iterator[str]:
    """Of numbers too, for which the library here has a template."""
    for element in (*FLOATS, *INTEGERS):
        yield f"MSL_INLINE {element} select({element} a, {element} b, bool c) {{ return c ? b : a; }}"
        for n in (2, 3, 4):
            vector = f"vec<{element}, {n}>"
            parameters = f"{vector} a, {vector} b, vec<bool, {n}> c"
            yield f"MSL_INLINE {vector} select({parameters}) {{ return select<{element}, {n}>(a, b, c); }}"


def _opened(tokens: list[Token]) -> bool:
    """Whether names of the library need no metal:: in front. MLX opens the namespace for its kernels, which include
    nothing."""
    words = [token.text for token in tokens]
    opened = any(words[i : i + 3] == ["using", "namespace", "metal"] for i, word in enumerate(words) if word == "using")
    return opened or not any(token.kind == "directive" and _METAL.match(token.text) for token in tokens)


def _templates(tokens: list[Token]) -> Iterator[tuple[str, Token]]:
    """(name, the word `template`) of every function template outside of namespaces and classes, the last one first."""
    found, index = [], 0
    while index < len(tokens) - 1:
        if tokens[index].text == "template" and tokens[index + 1].text == "<":
            at = template_end(tokens, index + 1) + 1
            while at < len(tokens) and tokens[at].text not in ("(", "{", ";", "="):
                inner = tokens[at].text in _WITH_BRACKETS and tokens[at + 1].text == "("
                at = matching(tokens, at + 1) + 1 if inner else at + 1
            if at < len(tokens) and tokens[at].text == "(" and tokens[at - 2].text != "::":
                found.append((tokens[at - 1].text, tokens[index]))
            index = at
        elif tokens[index].text == "{":
            index = matching(tokens, index) + 1
        else:
            index += 1
    return reversed(found)
