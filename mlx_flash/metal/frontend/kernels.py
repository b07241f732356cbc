"""Finds kernels, their parameters, instantiations, function constants and threadgroup variables in a Metal text."""

from .names import BUILTIN, Types
from .parameters import misplaced
from .rewriter import Rewriter
from .tokens import Token, Tokens, matching, split_arguments, without_alignment
from .translation import Parameter

_VALUES = ("bool", "char", "short", "int", "uint", "long", "half", "float", "auto")
_SPECIFIERS = ("inline", "static", "constexpr", "extern")
_MAX_BUFFER = 30  # the last of Metal's 31 buffers
_MAX_CONSTANT = 65535


def namespaces(tokens: Tokens) -> dict[int, tuple[str, ...]]:
    """{index of a brace that opens a namespace: the names it adds}; a namespace without a name adds an empty one."""
    found = {}
    for index in tokens.where(("namespace",)):
        if index and tokens[index - 1].text == "using":
            continue
        end = index + 1
        while end < len(tokens) and (tokens[end].kind == "word" or tokens[end].text == "::"):
            end += 1
        if end < len(tokens) and tokens[end].text == "{":
            words = [t.text for t in tokens[index + 1 : end] if t.text not in ("::", "inline")]
            found[end] = tuple(words) or ("",)
    return found


class Kernels(Rewriter):
    """The part of the translator that recognises kernels and records them in `result`."""

    def kernels(self):
        """Finds kernel functions and explicit instantiations of kernel templates."""
        self.types = Types(self.tokens)
        self.instantiated: list[tuple[Token, str]] = []
        opened, braces, last = namespaces(self.tokens), [()], -1
        for index in sorted({*self.tokens.where(("{", "}", "kernel")), *self.attached}):
            if not last < index < len(self.tokens):
                continue
            token = self.tokens[index]
            if token.text == "{":
                braces.append(braces[-1] + opened.get(index, ()))
            elif token.text == "}" and len(braces) > 1:
                braces.pop()
            elif token.text == "kernel" or index in self.attached:
                self.namespace = braces[-1]
                last = self.declaration(index)
        for token, host_name in self.instantiated:
            if self.result.function(host_name) not in self.result.kernels:
                self.fail(token, f"'{self.result.callee(host_name)}' is no instance of a kernel of this text")

    def declaration(self, index: int) -> int:
        """Handles a kernel's definition or instantiation at `index`; returns the index of the last token that it
        used."""
        token = self.tokens[index]
        keyword, result = token.text == "kernel", self.result_type(index)
        void = self.tokens[result].text == "void"
        host = self.host_name(index) or (keyword and self.host_name(index + 1)) or None
        if host and self.tokens[index - 1].text == "template":
            return self.instance(index, host)
        attribute = self.attribute_at(index, "kernel")
        if not void and (keyword or (attribute and self.tokens[result].text in _VALUES)):
            self.fail(token, "a kernel returns void, the word before its name")
        if not void or not (keyword or attribute):
            return index
        self.template = self.tokens[index - 1].text == ">"
        if keyword:
            self.replace(token.start, token.end)
        return self.kernel(result, host)

    def result_type(self, index: int) -> int:
        """The index of a kernel's result type, behind the word kernel and specifiers that may stand at `index`."""
        index += self.tokens[index].text == "kernel"
        while self.tokens[index].text in _SPECIFIERS or self.tokens[index].text == "__attribute__":
            index = matching(self.tokens, index + 1) + 1 if self.tokens[index].text == "__attribute__" else index + 1
        return index

    def host_name(self, index: int) -> str | None:
        """The name that an attribute [[host_name("...")]] before a token gives to a kernel, or None."""
        attribute = self.attribute_at(index, "host_name")
        return "".join(t.text.strip('"') for t in attribute if t.kind == "string") if attribute else None

    def instance(self, index: int, host_name: str) -> int:
        """Records an instantiation: template <type> f<A>; or template void f<A>(parameters);

        Returns the index of its semicolon. The type may be written in any way, decltype included.
        """
        end = index
        while self.tokens[end].text != ";":
            end += 1
        last = end
        if self.tokens[end - 1].text == ")":
            last = self.opening(end - 1, "(", ")")
        first = self.opening(last - 1, "<", ">") - 1 if self.tokens[last - 1].text == ">" else last - 1
        while self.tokens[first - 1].text == "::" and self.tokens[first - 2].kind == "word":
            if self.tokens[first - 2].text == "void":  # `void ::name<A>`: void is the result type, not a namespace
                break
            first -= 2
        if self.tokens[last - 1].text != ">" and last < end:
            parts = split_arguments(self.tokens[last + 1 : end - 1])
            self.result.types[host_name] = [self.text_of(part[:-1]) for part in parts]
        if host_name in self.result.instances:
            self.fail(self.tokens[first], f"a second kernel has the host name '{host_name}'")
        call = self.source[self.tokens[first].start : self.tokens[last].start]
        self.result.instances[host_name] = " ".join(call.split())
        self.result.places[host_name] = () if self.tokens[first - 1].text == "::" else self.namespace
        self.instantiated.append((self.tokens[last - 1], host_name))
        self.replace(self.tokens[index - 1].start, self.tokens[end].end)
        return end

    def opening(self, index: int, opens: str, closes: str) -> int:
        """The index of the opening bracket that belongs to the closing one at `index`."""
        depth = inner = 0
        while index > 0:
            text = self.tokens[index].text
            # In parentheses, > is a comparison and does not close the template arguments.
            inner += (text == ")") - (text == "(") if opens == "<" else 0
            depth += ((text == closes) - (text == opens)) * (inner == 0)
            if depth == 0:
                return index
            index -= 1
        self.fail(self.tokens[index], f"no '{opens}' for a '{closes}'")

    def kernel(self, index: int, host_name: str | None) -> int:
        """Records the kernel whose result type is at `index`; returns the index of its parameters' closing bracket."""
        name, opening = self.tokens[index + 1], index + 2
        special = self.tokens[opening].text == "<"
        if special:  # a specialisation, or an instance of a template
            while self.tokens[opening].text not in ("(", ";", "{"):
                opening += 1
        if name.kind != "word" or self.tokens[opening].text != "(":
            self.fail(
                name, f"the name of a kernel is one word of letters, digits and _, not '{self.name_at(index + 1)}'"
            )
        closing = matching(self.tokens, opening)
        if self.tokens[closing + 1].text == ";" and not special and not host_name:
            return closing  # a declaration without attributes; the definition follows
        plain = "::".join([*filter(None, self.namespace), name.text])
        called = self.text_of(self.tokens[index + 1 : opening])
        if special or host_name:
            self.result.instances[host_name or called] = called
        parameters = self.parameters(opening, closing)
        self.result.kernels.setdefault(plain, parameters)
        for key in (plain, host_name or called):
            self.result.places[key] = self.namespace
        if host_name and not special:
            self.result.renamed.add(plain)
        if self.template and not special:
            self.result.templates.add(plain)
        self.variables = self.result.variables.setdefault(plain, [])
        for parameter in parameters:
            if parameter.attribute == "threadgroup":
                parameter.variable = len(self.variables)
                self.variables.append(parameter.name)
        body = closing + 1
        if self.tokens[body].text == "{":
            self.threadgroup_variables(body + 1, matching(self.tokens, body))
        return closing

    def name_at(self, index: int) -> str:
        """The text between a kernel's result type and its parameters, for messages about the kernel's name."""
        start, end = self.tokens[index].start, self.tokens[index].end
        return self.source[start : max(end, self.source.find("(", start))]

    def parameters(self, opening: int, closing: int) -> list[Parameter]:
        """The parameters between two brackets; memory without a number gets the first free one."""
        parameters, start = [], opening + 1
        for part in split_arguments(self.tokens[opening + 1 : closing]):
            end = start + len(part)
            held = (a for i in range(start, end + 1) for a in self.attached.get(i, ()))
            found = [a for a in held if a[0].start < self.tokens[end].start]
            parameters.append(self.parameter(part, found))
            self.check_buffer(part, parameters)
            for reason in misplaced(part, parameters, self.types, opening):
                self.fail(part[-1], reason)
            start = end + 1
        for kind in ("buffer", "threadgroup"):
            taken = {p.index for p in parameters if p.attribute == kind and p.index >= 0}
            for parameter in parameters:
                if parameter.attribute == kind and parameter.index < 0:
                    parameter.index = next(free for free in range(len(parameters)) if free not in taken)
                    taken.add(parameter.index)
        return parameters

    def parameter(self, part: list[Token], attributes: list[list[Token]]) -> Parameter:
        condition = "".join(a[2].text for a in attributes if a[0].text == "function_constant")
        found = [a for a in attributes if a[0].text not in ("function_constant", "maybe_unused", "user")]
        words = {token.text for token in part}
        name = next((t.text for t, after in zip(part, part[1:]) if after.text == "["), part[-1].text)
        writable, constant = not words & {"const", "constant"}, "constant" in words
        if not found and words & {"device", "constant", "threadgroup"}:
            kind = "buffer" if words & {"device", "constant"} else "threadgroup"
            return Parameter(name, kind, -1, writable, condition, constant=constant)
        if len(found) != 1:
            self.fail(part[-1], f"parameter '{part[-1].text}' of a kernel needs one attribute")
        attribute = found[0]
        index = (self.argument(attribute) if attribute[0].text in ("buffer", "threadgroup") else None) or 0
        if not 0 <= index <= _MAX_BUFFER:
            self.fail(part[-1], f"{attribute[0].text}({index}): indices are at least 0 and at most {_MAX_BUFFER}")
        return Parameter(name, attribute[0].text, index, writable, condition, constant=constant)

    def check_buffer(self, part: list[Token], parameters: list[Parameter]):
        new, before = parameters[-1], parameters[:-1]
        if new.attribute != "buffer" or new.index < 0:
            return
        taken = (p.attribute == "buffer" and p.index == new.index and not p.condition for p in before)
        if any(taken) and not new.condition:
            self.fail(part[-1], f"parameter '{new.name}' binds buffer {new.index} twice")
        if {token.text for token in part} & {"thread", "threadgroup"}:
            reason = "is a buffer: it has to be in the device or constant address space"
            self.fail(part[-1], f"parameter '{new.name}' {reason}")

    def function_constants(self):
        """Replaces constant bool x [[function_constant(3)]]; by a declaration whose value a built kernel sets."""
        for index, attributes in list(self.attached.items()):
            for attribute in attributes:
                name, after = self.tokens[index - 1], self.tokens[index]
                if attribute[0].text != "function_constant" or after.text in (",", ")") or len(attribute) < 3:
                    continue
                if after.text != ";":
                    reason = f"the function constant '{name.text}' gets its value when a kernel is made, not here"
                    self.fail(name, reason)
                start = index - 1
                while self.tokens[start - 1].text not in (";", "{", "}") and self.tokens[start - 1].kind != "directive":
                    start -= 1
                words = (t.text for t in self.tokens[start : index - 1])
                kind = " ".join(word for word in words if word not in ("static", "constexpr", "const", "constant"))
                if not self.of_numbers(kind):
                    self.fail(name, f"a function constant is a number or a vector of numbers, not a {kind}")
                number = self.argument(attribute) or 0
                if not 0 <= number <= _MAX_CONSTANT:
                    self.fail(name, f"function_constant({number}): numbers are from 0 to {_MAX_CONSTANT}")
                self.result.constants[name.text] = self.argument(attribute)
                declared = f"constant {kind} {name.text} = msl_function_constant_{name.text}"
                self.replace(self.tokens[start].start, name.end, declared)

    def of_numbers(self, kind: str) -> bool:
        """Whether the type is a number or a vector; a name that only macros or headers define counts as one."""
        name = kind.split()[-1]
        if name in BUILTIN:
            return not name.startswith(("packed_", "atomic", "simdgroup", "void")) and "x" not in name
        classes = ("struct", "class", "union")
        return not any(a.text in classes and b.text == name for a, b in zip(self.tokens, self.tokens[1:]))

    def threadgroup_variables(self, start: int, end: int):
        """Replaces threadgroup T x[N]; inside a kernel by a reference into the threadgroup's memory."""
        index = start
        while index < end:
            token, first = self.tokens[index], index
            while self.tokens[first - 1].text == "volatile":
                first -= 1
            before = self.tokens[first - 1].text
            begins = before in (";", "{", "}", ")") or self.tokens[first - 1].kind == "directive"
            if token.text == "threadgroup" and begins:
                stop = index
                while self.tokens[stop].text != ";":
                    stop += 1
                self.threadgroup_variable(first, index, stop)
                index = stop
            index += 1

    def alignment(self, index: int, first: list[Token]) -> str:
        """The argument of an alignas before `threadgroup`, or right behind it, which is then removed from `first`."""
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

    def threadgroup_variable(self, begin: int, index: int, stop: int):
        """Replaces the declaration from the token `begin` to `stop`, whose address space is at `index`."""
        tokens, aligned = without_alignment(self.tokens[index + 1 : stop])
        parts = split_arguments(tokens)
        align = self.alignment(begin, parts[0]) if aligned is None else self.text_of(aligned)
        first, dimensions_at = parts[0], None
        depth = 0
        for position, token in enumerate(first):
            depth += (token.text in "<(") - (token.text in ">)")
            inside = position > 0 and first[position - 1].text == "("
            if token.text in ("*", "&") and (depth == 0 or inside):
                return  # a pointer or a reference to threadgroup memory
            if depth == 0 and token.text in ("[", "=", "{"):
                dimensions_at = position
                break
        name_at = (len(first) if dimensions_at is None else dimensions_at) - 1
        element = " ".join([self.text_of(self.tokens[begin:index]), self.text_of(first[:name_at])]).strip()
        declared = []
        for part in [first[name_at:], *parts[1:]]:
            value = next((at for at, token in enumerate(part) if token.text in ("=", "{")), len(part))
            name, dimensions, check = part[0].text, self.text_of(part[1:value]), ""
            if value < len(part):
                # A constant initialiser is accepted, as for a static variable of C++, but nothing stores it: reading it
                # is reported.
                check = f" {{ constexpr {element} value_of_{name}{dimensions} {self.text_of(part[value:])}; }}"
            slot = len(self.variables)
            self.variables.append(name)
            made = f"msl_threadgroup_variable<{element}{dimensions}, {slot}, {align}>()"
            declared.append(f"threadgroup auto& {name} = {made};{check}")
        self.replace(self.tokens[begin].start, self.tokens[stop].end, " ".join(declared))
