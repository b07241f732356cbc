"""Checks that the constants of a text have values known at compile time, as Metal demands."""

from collections.abc import Iterator

from .names import Types, statement_end, template_end
from .tokens import Token, Tokens, matching

_NO_VARIABLE = frozenset({"using", "typedef", "struct", "class", "union", "enum", "extern", "friend"})
# Library functions that clang could evaluate here, but Apple's compiler does not. Constructors, as_type, limits, min
# and max are allowed.
_COMPUTED = frozenset(
    "exp exp2 exp10 log log2 log10 sqrt rsqrt sin cos tan asin acos atan atan2 sinh cosh tanh asinh "
    "acosh atanh sinpi cospi tanpi floor ceil trunc rint round fabs fract saturate sign pow powr fmod "
    "fmin fmax fdim copysign divide step nextafter fma mix smoothstep fmin3 fmax3 fmedian3 ldexp ilogb "
    "sincos frexp modf dot cross length length_squared distance distance_squared normalize reflect "
    "refract faceforward transpose determinant select".split()
)


def computed_constants(tokens: Tokens, functions: list[tuple], types: Types) -> Iterator[tuple[Token, str]]:
    """Yields (token, reason) for every function call in the initialiser of a constant outside functions that Metal
    refuses.

    These are calls of library functions, and of functions of the text that are not constexpr. functions: as
    rules.defined_functions finds them. types: the types of these tokens.
    """
    defined = {tokens[name].text for name, *_ in functions}
    constant = {tokens[name].text for name, *_ in functions if _constexpr(tokens, name) or types.at(name)}
    bodies = {opening: body for _, opening, _, body, _ in functions}
    for start, end in _values(tokens, bodies):
        for name, after in zip(tokens[start:end], tokens[start + 1 : end]):
            computed = name.text not in constant if name.text in defined else name.text in _COMPUTED
            if computed and after.text == "(":
                yield (
                    name,
                    f"the value of a constant is known when it is compiled; '{name.text}' is computed when it runs",
                )


def _constexpr(tokens: list[Token], name: int) -> bool:
    """Whether the function whose name is at `name` is declared constexpr, or with a macro that may mean so."""
    while name and tokens[name - 1].text not in (";", "{", "}"):
        name -= 1
        if tokens[name].text in ("constexpr", "consteval") or tokens[name].text.isupper():
            return True
    return False


def _values(tokens: list[Token], bodies: dict[int, int]) -> Iterator[tuple[int, int]]:
    """Yields (start, end) of the initialiser of every constant that is declared outside functions and classes.

    bodies: {index of the bracket that opens a function's parameters: index of the brace that opens its body}. It tells
    a function such as `constant float* f() { ... }` from a constant.
    """
    index = 0
    while index < len(tokens):
        text = tokens[index].text
        if text == "{" and not _opens_namespace(tokens, index):
            index = matching(tokens, index)
        elif tokens[index].kind == "word" and (index == 0 or _ends(tokens[index - 1])):
            start = template_end(tokens, index + 1) + 1 if text == "template" else index
            end = start
            while end < len(tokens) and tokens[end].text not in ("=", "(", "{", ";", "<", "["):
                end += 1
            words = {token.text for token in tokens[start:end]}
            if end in bodies:
                index = matching(tokens, bodies[end])
            elif "constant" in words and not words & _NO_VARIABLE:
                index = statement_end(tokens, end)
                yield end, index
        index += 1


def _opens_namespace(tokens: list[Token], index: int) -> bool:
    while index and (tokens[index - 1].kind == "word" or tokens[index - 1].text == "::"):
        index -= 1
        if tokens[index].text == "namespace":
            return True
    return False


def _ends(token: Token) -> bool:
    return token.text in (";", "{", "}") or token.kind == "directive"
