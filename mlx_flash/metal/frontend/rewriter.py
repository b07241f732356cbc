"""Rewrites a Metal text: its tokens, its attributes, and edits that leave every line where it is."""

from .errors import CompileError
from .names import whole_number, whole_numbers
from .tokens import Token, Tokens, comments, line_of, matching, split_arguments, tokenize
from .translation import POSITIONS, Translation

_KNOWN_ATTRIBUTES = {
    *POSITIONS, "kernel", "host_name", "buffer", "threadgroup", "function_constant",
    "max_total_threads_per_threadgroup", "visible", "maybe_unused", "nodiscard", "fallthrough", "id", "user", "clang",
    "gnu", "likely", "unlikely", "deprecated", "noreturn",
}  # fmt: skip

_EXAMPLES = {
    "buffer": 0, "threadgroup": 0, "function_constant": 0, "max_total_threads_per_threadgroup": 256, "host_name": '"f"',
}  # fmt: skip


class Rewriter:
    """The tokens of a text and the edits to it. `attached` holds the attributes, which are removed before
    compilation."""

    def __init__(self, text: str):
        self.source = text
        self.tokens = tokenize(text)
        self.edits: list[tuple[int, int, str]] = [(start, end, "") for start, end in comments(text)]
        self.values = whole_numbers(self.tokens)
        self.result = Translation("")

    def fail(self, token: Token, message: str):
        """Raises CompileError with the line of a token."""
        line = line_of(self.source, token.start)
        shown = self.source.splitlines()[line - 1].strip()
        raise CompileError(f"line {line}: error: {message}\n    {shown}")

    def replace(self, start: int, end: int, new: str = ""):
        """Replaces text[start:end] by `new`."""
        self.edits.append((start, end, new))

    def apply(self) -> str:
        """The text after all edits; if two overlap, the first one is applied."""
        pieces, at = [], 0
        for start, end, new in sorted(self.edits):
            if start < at:
                continue
            pieces += [self.source[at:start], new, "\n" * self.source.count("\n", start, end)]
            at = end
        pieces.append(self.source[at:])
        return "".join(pieces)

    def attributes(self):
        """Blanks every [[...]] and records its words with the token that follows or precedes it."""
        self.attached: dict[int, list[list[Token]]] = {}
        kept, behind = Tokens(), 0
        for index in self.tokens.where(("[[",)):
            if index < behind:
                continue
            kept += self.tokens[behind:index]
            end = matching(self.tokens, index)
            for attribute in split_arguments(self.tokens[index + 1 : end]):
                if attribute[0].text not in _KNOWN_ATTRIBUTES:
                    self.fail(attribute[0], f"unknown attribute '{attribute[0].text}'")
                self.check_argument(attribute)
                self.attached.setdefault(len(kept), []).append(attribute)
                if attribute[0].text == "max_total_threads_per_threadgroup":
                    # A value that depends on a template parameter is known in the instances only.
                    self.result.max_threads = whole_number(attribute[2:-1], self.values) or self.result.max_threads
            self.replace(self.tokens[index].start, self.tokens[end].end)
            behind = end + 1
        kept += self.tokens[behind:]
        self.tokens = kept

    def check_argument(self, attribute: list[Token]):
        """Fails for an attribute whose argument is missing or of another kind."""
        name, arguments = attribute[0].text, attribute[2:-1]
        if name in _EXAMPLES and not arguments:
            self.fail(attribute[0], f"[[{name}]] lacks its argument, as in [[{name}({_EXAMPLES[name]})]]")
        if name == "host_name" and not any(token.kind == "string" for token in arguments):
            self.fail(attribute[0], "host_name takes the kernel's name in quotes")
        if name == "max_total_threads_per_threadgroup" and whole_number(arguments, self.values) == 0:
            self.fail(attribute[0], "a threadgroup has at least one thread, and at most 1024")

    def argument(self, attribute: list[Token]) -> int | None:
        """The whole number in [[attribute(number)]]; None if there is none."""
        if len(attribute) < 4:
            return None
        value = whole_number(attribute[2:-1], self.values)
        if value is None:
            self.fail(attribute[2], f"the argument of [[{attribute[0].text}]] has to be a whole number known here")
        return value

    def attribute_at(self, index: int, name: str) -> list[Token] | None:
        """The tokens of the attribute `name` before a token; None if it has no such attribute."""
        return next((a for a in self.attached[index] if a[0].text == name), None) if index in self.attached else None

    def text_of(self, tokens: list[Token]) -> str:
        """The source that these tokens span, on one line."""
        if not tokens:
            return ""
        return " ".join(self.source[tokens[0].start : tokens[-1].end].split())
