"""Rules of the Metal Shading Language that clang's C++ for OpenCL does not enforce, checked on tokens."""

import re
from collections.abc import Iterable, Iterator

from .absent import absent
from .function_pointers import aliases, parameters
from .initialisers import computed_constants
from .macros import expanded
from .names import BUILTIN, Types, statement_end, template_end
from .spaces import SPACES, names_space, needs_space, unspaced
from .tokens import Token, Tokens, matching, split_arguments

_FORBIDDEN = {
    "goto": "Metal has no goto",
    "double": "Metal has no double; use float",
    "virtual": "Metal has no virtual functions",
    "dynamic_cast": "Metal has no dynamic_cast",
    "typeid": "Metal has no type identification",
    "new": "Metal has no new and delete",
    "delete": "Metal has no new and delete",
    "throw": "Metal has no exceptions",
    "try": "Metal has no exceptions",
    "catch": "Metal has no exceptions",
    "asm": "Metal has no inline assembly",
    "__asm__": "Metal has no inline assembly",
    "register": "Metal has no register storage",
    "thread_local": "Metal has no thread_local storage; every local variable is a thread's own",
    "wchar_t": "Metal has no wchar_t",
    "printf": "Metal has no printf",
    "__int128": "Metal has no 128-bit integers",
    "_Complex": "Metal has no complex numbers",
    "_Imaginary": "Metal has no complex numbers",
    "__complex__": "Metal has no complex numbers",
    **{word: f"Metal has no {word}" for word in (
        "char8_t", "char16_t", "char32_t", "_Float16", "__fp16", "__bf16", "__float128", "_Bool", "_Atomic")},
    **{word: f"{word} is a word of OpenCL, not of Metal" for word in (
        "__global", "__local", "__constant", "__private", "__generic", "__kernel", "__read_only", "__write_only",
        "image2d_t", "sampler_t", "reserve_id_t", "clk_event_t", "ndrange_t")},
}  # fmt: skip
_NO_STD = "Metal has no namespace std; its library is in metal::"
_NO_LONG_LONG = "Metal has no long long: long has 64 bits, and its literals end in l or ul"
_NO_FUNCTION_POINTERS = "Metal has no function pointers here"
_LONG_LONG = re.compile(r"(0[xXbB][0-9a-fA-F]+|\d+)([uU]?(ll|LL)|(ll|LL)[uU])")
_INTEGER = re.compile(r"(0[xX][0-9a-fA-F']+|0[bB][01']+|0[0-7']*|[1-9][\d']*)[uUlL]*")
_LONG_DOUBLE = re.compile(r"(\d+\.\d*|\.\d+|\d+(?=[eE]))([eE][+-]?\d+)?[lL]")
# Suffixes that clang knows beside Metal's: 1.0q, 1.0f16, 2i, 3uz.
_OTHER_SUFFIX = re.compile(
    r"(\d[\d']*\.?[\d']*|\.\d[\d']*)([eE][+-]?\d+)?([fF](16|32|64|128)x?|[qQ]|[fF]?[ijIJ]|[uU]?([zZ]|wb|WB))"
)
_OF_LONG = ("long", "unsigned", "signed", "int", "const", "volatile")
_CASTS = ("static_cast", "reinterpret_cast", "const_cast")
_CONTROL = frozenset(
    {"constexpr", "if", "while", "for", "switch", "return", "sizeof", "alignas", "decltype", "static_assert", "catch"}
)
_CLASSES = ("struct", "class", "union", "enum")
_NO_VARIABLE = frozenset({"using", "typedef", *_CLASSES, "namespace", "static_assert", "friend", "operator"})

Finding = tuple[Token, str]


def findings(tokens: Tokens, language: float) -> Iterator[Finding]:
    """Yields (token, reason) for everything that a Metal compiler of this language version would refuse."""
    yield from absent(tokens)
    yield from _words(tokens.with_macros)
    tokens = expanded(tokens)
    types = Types(tokens)
    yield from unspaced(tokens, types)
    yield from _casts(tokens)
    yield from _function_pointers(tokens)
    if language < 4:
        yield from _lambdas(tokens)
        yield from _tensors(tokens)
    functions = list(defined_functions(tokens))
    yield from _declarations(tokens, functions)
    yield from _undefined(tokens)
    yield from computed_constants(tokens, functions, types)
    for name, opening, closing, _, _ in functions:
        yield from _signature(tokens, name, opening, closing)


def _words(tokens: Tokens) -> Iterator[Finding]:
    numbers = (text for text, places in tokens.places.items() if tokens[places[0]].kind == "number")
    for index in tokens.where((*_FORBIDDEN, "long", "std", *numbers)):
        token = tokens[index]
        if token.text in _FORBIDDEN:
            before = tokens[index - 1].text if index else ""
            if before not in (".", "->", "::") and not (before == "=" and token.text == "delete"):
                yield token, _FORBIDDEN[token.text]
        if token.kind == "number":
            if _LONG_LONG.fullmatch(token.text):
                yield token, _NO_LONG_LONG
            elif _LONG_DOUBLE.fullmatch(token.text):
                yield token, _FORBIDDEN["double"]
            elif _OTHER_SUFFIX.fullmatch(token.text):
                yield token, "the suffixes of Metal's literals are f, h, bf, u and l"
            elif _INTEGER.fullmatch(token.text) and len(token.text) > 16 and _value(token.text) >= 1 << 64:
                yield token, "an integer literal has at most 64 bits"
        elif token.text == "long" and _follows_long(tokens, index):
            yield token, _NO_LONG_LONG
        elif token.text == "std" and tokens[index + 1].text == "::":
            yield token, _NO_STD
        elif token.text == "std" and tokens[index - 1].text == "namespace" and tokens[index - 2].text == "using":
            yield token, _NO_STD


def _value(literal: str) -> int:
    digits = literal.replace("'", "").rstrip("uUlL")
    return int(f"0o{digits}" if digits[0] == "0" and digits.isdigit() else digits, 0)


def _follows_long(tokens: list[Token], index: int) -> bool:
    """Whether this `long` follows another one in the same type, as in long long and unsigned long int long."""
    while index and tokens[index - 1].text in _OF_LONG:
        index -= 1
        if tokens[index].text == "long":
            return True
    return False


def _casts(tokens: Tokens) -> Iterator[Finding]:
    """Yields casts to pointers without an address space: (float*)p and reinterpret_cast<float*>(p)."""
    for index in tokens.where(("(", *_CASTS), 3):
        token, inside = tokens[index], index + 1
        if token.text == "(" and (tokens[index - 1].kind != "word" or tokens[index - 1].text == "return"):
            end = matching(tokens, index)
            part = tokens[inside:end]
            # (float * x) with a name is a parameter list, which _signature checks.
            if (
                part
                and part[-1].text in ("*", "&")
                and all(t.text in BUILTIN or t.text in ("const", "*", "&") for t in part)
            ):
                yield part[0], needs_space(part)
        elif token.text in _CASTS and tokens[inside].text == "<":
            end = inside + 1
            while tokens[end].text not in ("(", ";"):
                end += 1
            part = tokens[inside + 1 : end - 1]
            if part and part[-1].text in ("*", "&") and not _has_space(part):
                yield part[0], needs_space(part)


def _has_space(part: list[Token]) -> bool:
    words = {token.text for token in part}
    return names_space(words) or "auto" in words or "decltype" in words


def _function_pointers(tokens: Tokens) -> Iterator[Finding]:
    """Yields variables that hold functions: only parameters of templates and of functions may."""
    allowed, arguments, names = -1, {name - 2 for name in parameters(tokens)}, set(aliases(tokens))
    for index in tokens.where((*names, "<", "typedef", "("), 5):
        token = tokens[index]
        if token.text in names and tokens[index + 1].kind == "word" and tokens[index + 2].text in ("=", ";", "[", "{"):
            if tokens[index - 1].text in (";", "{", "}", "const", "thread", "constexpr", ")"):
                yield token, _NO_FUNCTION_POINTERS
        if token.text == "<" and tokens[index - 1].text == "template":
            allowed = max(allowed, template_end(tokens, index))
        elif token.text == "typedef":
            allowed = max(allowed, statement_end(tokens, index))
        if token.text != "(" or index < allowed or index in arguments:
            continue
        if tokens[index + 1].text == "*" and tokens[index + 2].kind == "word":
            marks = [t.text for t in tokens[index : index + 5]]
            pointer = marks[3:] == [")", "("] or (marks[3] == "[" and tokens[matching(tokens, index) + 1].text == "(")
            if pointer and tokens[index - 1].kind == "word" and tokens[index - 1].text not in _CONTROL:
                yield token, _NO_FUNCTION_POINTERS


def _lambdas(tokens: Tokens) -> Iterator[Finding]:
    starts = ("=", "(", ",", "return", "{", ";", "}", "&&", "||")
    for index in tokens.where("[", 2):
        if index and tokens[index - 1].text in starts:
            after = tokens[matching(tokens, index) + 1].text
            if after in ("(", "{", "<"):
                yield tokens[index], "lambda expressions need Metal 4.0"


_TENSORS = re.compile(r"#\s*include\s*<(metal_tensor|MetalPerformancePrimitives/.*)>")


def _tensors(tokens: Tokens) -> Iterator[Finding]:
    for index in tokens.directives:
        if _TENSORS.match(tokens[index].text.strip()):
            yield tokens[index], "tensors and mpp::tensor_ops need Metal 4.0"


def defined_functions(tokens: Tokens) -> Iterator[tuple[int, int, int, int, int]]:
    """Yields the indices (name, bracket opening and closing the parameters, brace opening and closing the body) of
    every function definition.
    """
    for index in tokens.where("("):
        if index < 2:
            continue
        at = index - 1
        if tokens[at].text == ">":  # a specialisation of a template
            at = _template_start(tokens, at) - 1
        name, before = tokens[at], tokens[at - 1]
        if not any(tokens[i].text == "operator" for i in range(max(0, index - 4), index)):
            if name.kind != "word" or name.text in _CONTROL:
                continue
            if not (before.kind in ("word", "directive") or before.text in (">", "*", "&", "]]", "::", ";", "{", "}")):
                continue
            if before.text in ("return", "else"):
                continue
        closing = matching(tokens, index)
        body = _body(tokens, closing + 1)
        if body is not None:
            yield at, index, closing, body, matching(tokens, body)


def _template_start(tokens: list[Token], closing: int) -> int:
    depth = 0
    for at in range(closing, max(0, closing - 40), -1):
        depth += (tokens[at].text == ">") - (tokens[at].text == "<")
        if depth == 0:
            return at
    return closing


def _body(tokens: list[Token], at: int) -> int | None:
    """The brace that opens a function's body, behind qualifiers and a constructor's initialisers; None without one."""
    while at < len(tokens) and tokens[at].text in ("const", "volatile", "noexcept", "override", *SPACES):
        at += 1
    if at < len(tokens) and tokens[at].text == ":":
        at += 1
        while at < len(tokens) and tokens[at].kind == "word":
            while at < len(tokens) and tokens[at].text not in ("(", "{", ";"):
                at += 1
            if at >= len(tokens) or tokens[at].text == ";":
                return None
            at = matching(tokens, at) + 1
            if at < len(tokens) and tokens[at].text == ",":
                at += 1
    return at if at < len(tokens) and tokens[at].text == "{" else None


def _signature(tokens: list[Token], name: int, opening: int, closing: int) -> Iterator[Finding]:
    """Yields parameters and results that are pointers or references without an address space."""
    for part in split_arguments(tokens[opening + 1 : closing]):
        plain = _without_attributes(part)
        # A default value is an expression, and a template argument may contain a product.
        head = _outside_templates(plain)
        if any(token.text in ("*", "&", "&&") for token in head) and not _has_space(plain):
            yield plain[0], needs_space(head)
    result, at = [], name - 1
    while at >= 0 and tokens[at].text not in (";", "{", "}", ")", ":", "]]") and tokens[at].kind != "directive":
        result.insert(0, tokens[at])
        at -= 1
    if (
        result
        and result[-1].text in ("*", "&")
        and not _has_space(result)
        and "operator" not in {t.text for t in result}
    ):
        yield result[0], needs_space(result)


def _without_attributes(part: list[Token]) -> list[Token]:
    kept, index = [], 0
    while index < len(part):
        if part[index].text == "[[":
            index = matching(part, index)
        elif part[index].text == "=":
            break
        else:
            kept.append(part[index])
        index += 1
    return kept or part[:1]


def _outside_templates(part: list[Token]) -> list[Token]:
    kept, depth = [], 0
    for token in part:
        depth += (token.text in "<([") - (token.text in ">)]") if len(token.text) == 1 else 0
        if depth == 0:
            kept.append(token)
    return kept


def _declarations(tokens: Tokens, functions) -> Iterator[Finding]:
    """Checks the start of every statement, by where it stands: in a function, a structure or a namespace."""
    bodies = {body for _, _, _, body, _ in functions}
    scopes: list[str] = []
    structure, namespace, brackets = False, False, 0
    ends = {*tokens.where(";{}"), *tokens.directives}
    starts = {0, *(index + 1 for index in ends)}
    for index in sorted({*ends, *starts, *tokens.where(("(", ")", "static", "namespace", *_CLASSES))}):
        if index == len(tokens):
            break
        token, before = tokens[index], tokens[index - 1].text if index else ";"
        text, inside = token.text, scopes[-1] if scopes else "namespace"
        if text == "(":
            brackets += 1
        elif text == ")":
            brackets -= 1
        elif text == "{":
            kind = "function" if index in bodies or "function" in scopes else "structure" if structure else "namespace"
            scopes.append(kind if kind != "namespace" or namespace or before == ")" else "function")
            structure = namespace = False
        elif text == "}" and scopes:
            scopes.pop()
        elif text == ";":
            structure = namespace = False
        elif text in _CLASSES and before not in ("<", ","):
            structure = True
        elif text == "namespace":
            namespace = True
        elif text == "static" and inside == "function":
            if not _constant({t.text for t in tokens[index : index + 4]}):
                yield token, "Metal has no static variables in functions"
        if index in starts and token.kind == "word" and brackets <= 0:
            yield from _statement(tokens, index, inside)


def _undefined(tokens: Tokens) -> Iterator[Finding]:
    """Yields constants that are declared as extern and have no value anywhere: no other file could have it."""
    for index in tokens.where(("extern",)):
        part = tokens[index : statement_end(tokens, index)]
        if any(
            token.kind == "string" or token.text in ("(", "=", "{") for token in part
        ):  # linkage, a function, a value
            continue
        name = next((t for t, after in zip(part, part[1:]) if after.text == "["), part[-1]).text
        others = (at for at in tokens.where((name,)) if not part[0].start <= tokens[at].start <= part[-1].start)
        if not any(tokens[at + 1].text in ("=", "[", "{") and tokens[at - 1].kind == "word" for at in others):
            yield part[0], f"'{name}' is declared and never defined: leave out extern and write its value here"


def _constant(words: set[str]) -> bool:
    """Whether the words declare a constant; a macro such as MTL_CONST may stand for the keyword."""
    return any(word == "constant" or word.endswith("_CONST") for word in words)


def _statement(tokens: list[Token], index: int, inside: str) -> Iterator[Finding]:
    end = index
    while end < len(tokens) and tokens[end].text not in (";", "=", "(", "{", "}", "[", "[[", ":") and end - index < 24:
        if tokens[end].kind == "directive":
            return
        end += 1
    if end >= len(tokens):
        return
    part = tokens[index:end]
    words = {token.text for token in part}
    variable = tokens[end].text in (";", "=", "[", "[[") and len(part) >= 2 and part[-1].kind == "word"
    everywhere = inside == "structure" and "static" in words
    if words & _NO_VARIABLE or "return" in words or "case" in words:
        return
    if (inside == "namespace" or everywhere) and variable and "template" not in words and not _constant(words):
        yield part[0], "a variable outside functions has to be in the constant address space"
        return
    pointing = _outside_templates(part)
    if variable and len(pointing) >= 3 and pointing[-2].text in ("*", "&") and not _has_space(part):
        if all(token.kind == "word" or token.text in ("*", "&", "::") for token in pointing):
            yield part[0], needs_space(pointing)


_NO_TYPES = ("return", "else", "do", "case")  # words in front of a call


def calls_of_kernels(tokens: Tokens, kernels: Iterable[str]) -> Iterator[Finding]:
    """Yields calls of kernels: only a launch may call one."""
    names = set(kernels).difference(_other_meanings(tokens, set(kernels)))
    calls = [index for index in tokens.where(names, 1) if tokens[index + 1].text == "("]
    calls = [index for index in calls if tokens[index - 1].text not in (".", "->", "::")]
    for _, _, _, body, end in defined_functions(tokens) if calls else ():
        for index in calls:
            if body < index < end - 1:
                yield tokens[index], f"'{tokens[index].text}' is a kernel, which no function calls"


def _other_meanings(tokens: Tokens, kernels: set[str]) -> Iterator[str]:
    """Names of kernels that variables, parameters, methods or other functions have too: what a call of them means is
    left to the compiler."""
    for index in tokens.where(kernels, 1):
        name, before, after = tokens[index].text, tokens[index - 1], tokens[index + 1].text
        if not index or after not in ("(", ",", ")", "=", ";", "{", "["):
            continue
        if before.text == "void":  # the kernel itself, unless the word is absent
            start = index
            while start > 0 and tokens[start - 1].text not in (";", "{", "}") and tokens[start - 1].kind != "directive":
                start -= 1
            if not any(token.text == "kernel" for token in tokens[start:index]):
                yield name
        elif before.text in (">", "*", "&") or (before.kind == "word" and before.text not in _NO_TYPES):
            yield name
