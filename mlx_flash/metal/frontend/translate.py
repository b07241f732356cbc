"""Rewrites Metal text into what clang's C++ for OpenCL compiles, line for line: errors and reports name Metal lines."""

import re

from .bfloats import float_edits
from .casts import cast_edits, list_edits
from .constructors import constructor_edits
from .errors import CompileError
from .function_pointers import function_pointer_edits
from .loops import loop_edits
from .rules import BUILTIN, calls_of_kernels, findings
from .tokens import Token, comments, line_of, matching, split_arguments, tokenize
from .translation import POSITIONS, Parameter, Translation

_KNOWN_ATTRIBUTES = {
    *POSITIONS, "kernel", "host_name", "buffer", "threadgroup", "function_constant",
    "max_total_threads_per_threadgroup", "visible", "maybe_unused", "nodiscard", "fallthrough", "id", "user", "clang",
}  # fmt: skip
_SWIZZLE = re.compile(r"[xyzw]{2,4}|[rgba]{2,4}")
_LANES = {letter: index for letters in ("xyzw", "rgba") for index, letter in enumerate(letters)}
_VALUES = ("bool", "char", "short", "int", "uint", "long", "half", "float", "auto")
_MAX_BUFFER = 30  # Metal binds 31
_ASSIGNMENTS = ("=", "+=", "-=", "*=", "/=")


def _number(literal: str) -> int:
    """An integer literal of C++."""
    literal = literal.rstrip("uUlL")
    return int(literal, 8 if literal.strip("0") and literal[0] == "0" and literal.isdigit() else 0)


class _Translator:
    def __init__(self, text: str, unrolled: bool):
        self.source, self.unrolled = text, unrolled
        self.tokens = tokenize(text)
        self.edits: list[tuple[int, int, str]] = [(start, end, "") for start, end in comments(text)]
        self.result = Translation("")

    def fail(self, token: Token, message: str):
        line = line_of(self.source, token.start)
        shown = self.source.splitlines()[line - 1].strip()
        raise CompileError(f"line {line}: error: {message}\n    {shown}")

    def replace(self, start: int, end: int, new: str = ""):
        self.edits.append((start, end, new))

    def run(self) -> Translation:
        self.attributes()
        self.function_constants()
        self.redundant_definitions()
        self.kernels()
        for token, reason in calls_of_kernels(self.tokens, self.result.kernels):
            self.fail(token, reason)
        self.words()
        self.edits += loop_edits(self.tokens)
        self.result.text = self.apply()
        return self.result

    def apply(self) -> str:
        pieces, at = [], 0
        for start, end, new in sorted(self.edits):
            if start < at:
                continue
            pieces += [self.source[at:start], new, "\n" * self.source.count("\n", start, end)]
            at = end
        pieces.append(self.source[at:])
        return "".join(pieces)

    def attributes(self):
        """Blanks every [[...]]; remembers its words at the token that follows or precedes it."""
        self.attached: dict[int, list[list[Token]]] = {}
        kept: list[Token] = []
        index = 0
        while index < len(self.tokens):
            token = self.tokens[index]
            if token.text != "[[":
                kept.append(token)
                index += 1
                continue
            end = matching(self.tokens, index)
            for attribute in split_arguments(self.tokens[index + 1 : end]):
                if attribute[0].text not in _KNOWN_ATTRIBUTES:
                    self.fail(attribute[0], f"unknown attribute '{attribute[0].text}'")
                self.attached.setdefault(len(kept), []).append(attribute)
                if attribute[0].text == "max_total_threads_per_threadgroup" and attribute[2].kind == "number":
                    self.result.max_threads = int(attribute[2].text)
            self.replace(token.start, self.tokens[end].end)
            index = end + 1
        self.tokens = kept

    def attribute_at(self, index: int, name: str):
        return next((a for a in self.attached[index] if a[0].text == name), None) if index in self.attached else None

    def kernels(self):
        """Finds kernel functions and explicit instantiations of kernel templates."""
        index = 0
        while index < len(self.tokens):
            token = self.tokens[index]
            if token.text != "kernel" and index not in self.attached:
                index += 1
                continue
            keyword = token.text == "kernel" and self.tokens[index + 1].text in ("void", "[[")
            host = self.attribute_at(index, "host_name")
            if host and self.tokens[index - 1].text == "template":
                index = self.instance(index, "".join(token.text.strip('"') for token in host if token.kind == "string"))
            elif self.attribute_at(index, "kernel") and token.text in _VALUES:
                self.fail(token, "a kernel returns void")
            elif keyword or (self.attribute_at(index, "kernel") and token.text == "void"):
                if keyword:
                    self.replace(token.start, token.end)
                    index += 1
                index = self.kernel(index)
            index += 1

    def instance(self, index: int, host_name: str) -> int:
        """template decltype(f<A>) f<A>; or template void f<A>(parameters);"""
        end = index
        while self.tokens[end].text != ";":
            end += 1
        start = next(i for i in range(index, end) if self.tokens[i].text == "(")
        if self.tokens[index].text == "decltype":
            first, last = start + 1, matching(self.tokens, start)
        else:
            first, last = index + 1, start
            if self.tokens[start - 1].text != ">":
                parts = split_arguments(self.tokens[start + 1 : matching(self.tokens, start)])
                self.result.types[host_name] = [self.text_of(part[:-1]) for part in parts]
        call = self.source[self.tokens[first].start : self.tokens[last].start]
        self.result.instances[host_name] = " ".join(call.split())
        self.replace(self.tokens[index - 1].start, self.tokens[end].end)
        return end

    def kernel(self, index: int) -> int:
        name = self.tokens[index + 1]
        opening = index + 2
        closing = matching(self.tokens, opening)
        parameters, start = [], opening + 1
        for part in split_arguments(self.tokens[opening + 1 : closing]):
            end = start + len(part)
            held = (a for i in range(start, end + 1) for a in self.attached.get(i, ()))
            found = [a for a in held if a[0].start < self.tokens[end].start]
            parameters.append(self.parameter(part, found))
            self.check_buffer(part, parameters)
            start = end + 1
        # A buffer without a number gets the first one that is free.
        taken = {p.index for p in parameters if p.attribute == "buffer" and p.index >= 0}
        for parameter in parameters:
            if parameter.index < 0:
                parameter.index = next(number for number in range(len(parameters)) if number not in taken)
                taken.add(parameter.index)
        self.result.kernels[name.text] = parameters
        if self.tokens[index - 1].text == ">":
            self.result.templates.add(name.text)
        self.variables = self.result.variables.setdefault(name.text, [])
        for parameter in parameters:
            if parameter.attribute == "threadgroup":
                parameter.variable = len(self.variables)
                self.variables.append(parameter.name)
        body = closing + 1
        if self.tokens[body].text != "{":
            return closing
        end = matching(self.tokens, body)
        self.threadgroup_variables(body + 1, end)
        return closing

    def parameter(self, part: list[Token], attributes: list[list[Token]]) -> Parameter:
        condition = "".join(a[2].text for a in attributes if a[0].text == "function_constant")
        found = [a for a in attributes if a[0].text not in ("function_constant", "maybe_unused")]
        words = {token.text for token in part}
        name = next((t.text for t, after in zip(part, part[1:]) if after.text == "["), part[-1].text)
        writable, constant = not words & {"const", "constant"}, "constant" in words
        if not found and words & {"device", "constant"}:
            return Parameter(name, "buffer", -1, writable, condition, constant=constant)
        if len(found) != 1:
            self.fail(part[-1], f"parameter '{part[-1].text}' of a kernel needs one attribute")
        attribute = found[0]
        index = _number(attribute[2].text) if len(attribute) > 2 and attribute[2].kind == "number" else 0
        return Parameter(name, attribute[0].text, index, writable, condition, constant=constant)

    def check_buffer(self, part: list[Token], parameters: list[Parameter]):
        new, before = parameters[-1], parameters[:-1]
        if new.attribute != "buffer" or new.index < 0:
            return
        taken = (p.attribute == "buffer" and p.index == new.index and not p.condition for p in before)
        if any(taken) and not new.condition:
            self.fail(part[-1], f"parameter '{new.name}' binds buffer {new.index} twice")
        if new.index > _MAX_BUFFER:
            most = f"at most {_MAX_BUFFER + 1} buffers, the last at most {_MAX_BUFFER}"
            self.fail(part[-1], f"buffer({new.index}): a kernel has {most}")
        if {token.text for token in part} & {"thread", "threadgroup"}:
            reason = "is a buffer: it has to be in the device or constant address space"
            self.fail(part[-1], f"parameter '{new.name}' {reason}")

    def function_constants(self):
        """constant bool x [[function_constant(3)]]; gets its value when the kernel is built."""
        for index, attributes in list(self.attached.items()):
            for attribute in attributes:
                name, after = self.tokens[index - 1], self.tokens[index]
                if attribute[0].text != "function_constant" or after.text != ";" or len(attribute) < 3:
                    continue
                start = index - 1
                while self.tokens[start - 1].text not in (";", "}") and self.tokens[start - 1].kind != "directive":
                    start -= 1
                words = (t.text for t in self.tokens[start : index - 1])
                kind = " ".join(word for word in words if word not in ("static", "constexpr", "const", "constant"))
                self.result.constants[name.text] = _number(attribute[2].text)
                declared = f"constant {kind} {name.text} = msl_function_constant_{name.text}"
                self.replace(self.tokens[start].start, name.end, declared)

    def threadgroup_variables(self, start: int, end: int):
        """threadgroup T x[N]; inside a kernel becomes a reference into the threadgroup's arena."""
        index = start
        while index < end:
            token = self.tokens[index]
            before = self.tokens[index - 1].text
            begins = before in (";", "{", "}", ")") or self.tokens[index - 1].kind == "directive"
            if token.text == "threadgroup" and begins:
                stop = index
                while self.tokens[stop].text != ";":
                    stop += 1
                self.threadgroup_variable(index, stop)
                index = stop
            index += 1

    def alignment(self, index: int, first: list[Token]) -> str:
        """The argument of an alignas before `threadgroup` or right after it, which is cut out of `first`."""
        if first[0].text == "alignas":
            close = matching(first, 1)
            words = self.text_of(first[2:close])
            del first[: close + 1]
            return words
        opening = index - 1
        while self.tokens[index - 1].text == ")" and self.tokens[opening].text not in (";", "{", "}"):
            if self.tokens[opening].text == "alignas":
                self.replace(self.tokens[opening].start, self.tokens[index - 1].end)
                return self.text_of(self.tokens[opening + 2 : index - 1])
            opening -= 1
        return "1"

    def threadgroup_variable(self, index: int, stop: int):
        parts = split_arguments(self.tokens[index + 1 : stop])
        align = self.alignment(index, parts[0])
        first, dimensions_at = parts[0], None
        depth = 0
        for position, token in enumerate(first):
            depth += (token.text in "<(") - (token.text in ">)")
            if depth == 0 and token.text in ("*", "&", "="):
                return  # a pointer to threadgroup memory, or a reference
            if depth == 0 and token.text == "[":
                dimensions_at = position
                break
        name_at = (len(first) if dimensions_at is None else dimensions_at) - 1
        element = self.text_of(first[:name_at])
        declared = []
        for part in [first[name_at:], *parts[1:]]:
            # What threadgroup memory holds at first is nobody's to say: an initialiser has no effect.
            end = next((i for i, token in enumerate(part) if token.text == "="), len(part))
            name, dimensions = part[0].text, self.text_of(part[1:end])
            number = len(self.variables)
            self.variables.append(name)
            made = f"msl_threadgroup_variable<{element}{dimensions}, {number}, {align}>()"
            declared.append(f"threadgroup auto& {name} = {made};")
        self.replace(self.tokens[index].start, self.tokens[stop].end, " ".join(declared))

    def text_of(self, tokens: list[Token]) -> str:
        if not tokens:
            return ""
        return " ".join(self.source[tokens[0].start : tokens[-1].end].split())

    def redundant_definitions(self):
        """constant T S::x[8]; outside its class, where the constexpr member needs no definition any more."""
        start, possible = 0, False
        for index, token in enumerate(self.tokens):
            if token.text == "constexpr":
                possible = True
            elif token.text in (";", "{", "}") or token.kind == "directive":
                words = {t.text for t in self.tokens[start:index]} if possible and token.text == ";" else set()
                if {"::", "constexpr", "constant"} <= words and not {"=", "(", "using", "typename"} & words:
                    self.replace(self.tokens[start].start, token.end)
                start, possible = index + 1, False

    def words(self):
        """Rewrites that need no context but a neighbour."""
        words = ((i, t) for i, t in enumerate(self.tokens) if t.kind == "word")
        own = {t.text for i, t in words if self.tokens[i - 1].text not in (".", "->")}
        for index, token in enumerate(self.tokens):
            if token.kind == "mark":
                continue
            following = self.tokens[index + 1].text if index + 1 < len(self.tokens) else ""
            if token.kind == "directive":
                if not self.unrolled and re.match(r"\s*#\s*pragma\s+(clang\s+loop|unroll)", token.text):
                    self.replace(token.start, token.end)
            elif token.kind == "number" and token.text.endswith(("bf", "BF")):
                self.replace(token.start, token.end, f"((bfloat){token.text[:-2]})")
            elif not self.unrolled and token.text == "_Pragma" and "unroll" in self.tokens[index + 2].text:
                self.replace(token.start, self.tokens[index + 3].end)
            elif token.text == "decltype" and self.tokens[index + 2].text != "auto":
                # Of a variable it would name the address space too, which Metal's does not.
                self.replace(token.start, token.start, "metal::remove_addrspace_t<")
                end = self.tokens[matching(self.tokens, index + 1)].end
                self.replace(end, end, ">")
            elif token.text == "thread" and self.tokens[index + 1].text == "const" and self.binds_value(index + 2):
                self.replace(token.start, token.end, "msl_const_thread")
            elif token.text == "const" and following == "thread" and self.binds_value(index + 2):
                self.replace(self.tokens[index + 1].start, self.tokens[index + 1].end, "msl_const_thread")
            elif token.text == "static_cast":
                self.replace(token.start, token.end, "msl_static_cast")
            elif index and self.tokens[index - 1].text in (".", "->") and _SWIZZLE.fullmatch(token.text):
                if token.text not in own and following != "(":
                    method = "put" if following in _ASSIGNMENTS else "get"
                    lanes = ", ".join(str(_LANES[letter]) for letter in token.text)
                    self.replace(token.start, token.end, f"template {method}<{lanes}>()")
        for edits in (constructor_edits, function_pointer_edits, cast_edits, list_edits, float_edits):
            self.edits += edits(self.tokens)
        self.conditionals()
        self.constant_copies()

    def binds_value(self, index: int) -> bool:
        """Does the type at `index` end in a reference? One to a constant thread object also takes values."""
        depth = 0
        while index < len(self.tokens):
            text = self.tokens[index].text
            depth += (text == "<") - (text == ">")
            if depth == 0 and text == "&":
                return True
            named = self.tokens[index].kind in ("word", "number") or text in ("<", ">", "::")
            if not named and not (depth and text == ","):
                return False
            index += 1
        return False

    def postfix_end(self, index: int) -> int | None:
        """The index behind the expression `name`, `a.b[i](c)` ... that starts here; None if something else does."""
        if self.tokens[index].kind != "word" or self.tokens[index].text in ("true", "false", "nullptr", "sizeof"):
            return None
        index += 1
        while index < len(self.tokens):
            text = self.tokens[index].text
            if text in ("[", "("):
                index = matching(self.tokens, index) + 1
            elif text in (".", "->", "::"):
                index += 2
            else:
                return index
        return None

    def constant_copies(self):
        """S s = constants[0]; the structures behind constant pointers and references are read byte by byte."""
        roots = set()
        for index, token in enumerate(self.tokens[:-3]):
            if token.text == "constant":
                at = index + 1 + (self.tokens[index + 1].text == "const")
                while self.tokens[at + 1].text in ("const", "::") or self.tokens[at].text == "::":
                    at += 1
                if self.tokens[at].text not in BUILTIN and self.tokens[at + 1].text in ("*", "&"):
                    roots.add(self.tokens[at + 2].text)
        for index, token in enumerate(self.tokens[:-2]):
            if token.text != "=" or self.tokens[index - 2].text in ("*", "&"):
                continue
            start = index + 1 + (self.tokens[index + 1].text == "*")
            end = self.postfix_end(start)
            if end and self.tokens[start].text in roots and self.tokens[end].text in (";", ","):
                self.replace(self.tokens[index + 1].start, self.tokens[index + 1].start, "msl_value(")
                self.replace(self.tokens[end].start, self.tokens[end].start, ")")

    def conditionals(self):
        """c ? lvalue : value of one class type: clang sees two address spaces, so the lvalue is read first."""
        for index, token in enumerate(self.tokens):
            if token.text not in ("?", ":"):
                continue
            end = self.postfix_end(index + 1)
            if token.text == "?":
                self.open_conditionals = getattr(self, "open_conditionals", 0) + 1
                wanted = (":",)
            else:
                # A colon of a case, a label, an access or a constructor closes no conditional.
                if not getattr(self, "open_conditionals", 0):
                    continue
                self.open_conditionals -= 1
                wanted = (";", ",", ")", "]", "}", ":")
            if end and self.tokens[end].text in wanted and self.tokens[index + 1].end <= self.tokens[end - 1].end:
                self.replace(self.tokens[index + 1].start, self.tokens[index + 1].start, "msl_value(")
                self.replace(self.tokens[end].start, self.tokens[end].start, ")")


def translate(text: str, language: float = 3.1, unrolled: bool = False) -> Translation:
    """Translates Metal text; raises CompileError for what Metal of that version forbids and clang would accept.

    unrolled: what the text says of unrolling its loops stays; a CPU is better off without.
    """
    if not text.isascii():
        position, character = next((at, character) for at, character in enumerate(text) if ord(character) > 127)
        reason = f"character {character!r} is not ASCII; MLX passes kernels as ASCII text"
        raise CompileError(f"line {line_of(text, position)}: error: {reason}")
    translator = _Translator(text, unrolled)
    for token, reason in findings(translator.tokens, language):
        translator.fail(token, reason)
    return translator.run()
