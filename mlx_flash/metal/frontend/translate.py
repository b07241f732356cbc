"""Rewrites Metal text to clang's C++ for OpenCL line by line, so that errors and reports name lines of the Metal
text."""

import re

from .addresses import address_edits
from .bfloats import float_edits
from .casts import cast_edits, list_edits
from .constant_vectors import constant_vector_edits
from .constructors import constructor_edits
from .designators import designator_edits
from .function_pointers import function_pointer_edits
from .kernels import Kernels
from .loops import loop_edits
from .methods import method_edits
from .names import BUILTIN
from .overloads import overload_edits
from .rules import calls_of_kernels, findings
from .text import beyond_ascii
from .tokens import matching
from .translation import Translation

_BFLOAT = re.compile(r"(?!0[xX])[\d.].*(bf|BF)|0[xX].*[pP].*(bf|BF)")  # 0xbf is an integer
_SWIZZLE = re.compile(r"[xyzw]{2,4}|[rgba]{2,4}")
_LANES = {letter: index for letters in ("xyzw", "rgba") for index, letter in enumerate(letters)}
_WORDS = ("_Pragma", "decltype", "thread", "const", "extern", "static_cast")
_ASSIGNMENTS = ("=", "+=", "-=", "*=", "/=", "%=", "&=", "|=", "^=", "<<=", ">>=")


class _Translator(Kernels):
    def __init__(self, text: str, unrolled: bool):
        super().__init__(text)
        self.unrolled = unrolled

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

    def redundant_definitions(self):
        """Blanks constant T S::x[8]; outside its class: a constexpr member needs no definition since C++17."""
        start, possible = 0, False
        for index in sorted([*self.tokens.where(("constexpr", ";", "{", "}")), *self.tokens.directives]):
            token = self.tokens[index]
            if token.text == "constexpr":
                possible = True
            elif token.text in (";", "{", "}") or token.kind == "directive":
                words = {t.text for t in self.tokens[start:index]} if possible and token.text == ";" else set()
                if {"::", "constexpr", "constant"} <= words and not {"=", "(", "using", "typename"} & words:
                    self.replace(self.tokens[start].start, token.end)
                start, possible = index + 1, False

    def words(self):
        """Rewrites that depend on a word and its neighbours only."""
        places = self.tokens.places
        swizzles = list(filter(_SWIZZLE.fullmatch, places))
        own = {word for word in swizzles if any(self.tokens[i - 1].text not in (".", "->") for i in places[word])}
        looked_at = self.tokens.where((*_WORDS, *swizzles, *filter(_BFLOAT.fullmatch, places)))
        for index in sorted([*self.tokens.directives, *looked_at]):
            token = self.tokens[index]
            following = self.tokens[index + 1].text if index + 1 < len(self.tokens) else ""
            if token.kind == "directive":
                if not self.unrolled and re.match(r"\s*#\s*pragma\s+(clang\s+loop|unroll)", token.text):
                    self.replace(token.start, token.end)
            elif token.kind == "number" and _BFLOAT.fullmatch(token.text):
                self.replace(token.start, token.end, f"((bfloat){token.text[:-2]})")
            elif not self.unrolled and token.text == "_Pragma" and "unroll" in self.tokens[index + 2].text:
                self.replace(token.start, self.tokens[index + 3].end)
            elif token.text == "decltype" and self.tokens[index + 2].text != "auto":
                # Clang's type of a variable includes its address space, which Metal's does not.
                self.replace(token.start, token.start, " ::metal::remove_addrspace_t<")
                end = self.tokens[matching(self.tokens, index + 1)].end
                self.replace(end, end, ">")
            elif token.text == "thread" and self.tokens[index + 1].text == "const" and self.binds_value(index + 2):
                self.replace(token.start, token.end, "msl_const_thread")
            elif token.text == "const" and following == "thread" and self.binds_value(index + 2):
                self.replace(self.tokens[index + 1].start, self.tokens[index + 1].end, "msl_const_thread")
            elif token.text == "thread" and self.second_space(index):
                self.replace(token.start, token.end, "")
            elif token.text == "extern" and following == '"C"':
                # The translation may add templates to a class, which C linkage does not allow.
                self.replace(self.tokens[index + 1].start, self.tokens[index + 1].end, '"C++"')
            elif token.text == "static_cast":
                self.replace(token.start, token.end, "msl_static_cast")
            elif index and self.tokens[index - 1].text in (".", "->") and _SWIZZLE.fullmatch(token.text):
                if token.text not in own and following != "(":
                    method = "put" if following in _ASSIGNMENTS else "get"
                    lanes = ", ".join(str(_LANES[letter]) for letter in token.text)
                    self.replace(token.start, token.end, f"template {method}<{lanes}>()")
        for edits in (
            constructor_edits, function_pointer_edits, cast_edits, list_edits, float_edits, designator_edits,
            address_edits, constant_vector_edits, method_edits, overload_edits,
        ):  # fmt: skip
            self.edits += edits(self.tokens)
        self.conditionals()
        self.constant_copies()

    def second_space(self, index: int) -> bool:
        """Whether another space beside `thread` is that of the pointee, as in thread const device T*."""
        for step in (-1, 1):
            at = index + step
            while 0 <= at < len(self.tokens) and self.tokens[at].text in ("const", "volatile"):
                at += step
            if 0 <= at < len(self.tokens) and self.tokens[at].text in ("device", "constant", "threadgroup"):
                return True
        return False

    def binds_value(self, index: int) -> bool:
        """Whether the type at `index` ends in a reference: a const thread reference also binds to values."""
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
        """The index behind the expression that starts here: a name or (name) with members, subscripts and calls;
        else None."""
        if self.tokens[index].text == "(":
            index = matching(self.tokens, index)
        elif self.tokens[index].kind != "word" or self.tokens[index].text in ("true", "false", "nullptr", "sizeof"):
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
        """Reads structures behind constant pointers and references byte by byte, as in S s = constants[0];"""
        roots = set()
        for index in self.tokens.where(("constant",), 3):
            at = index + 1 + (self.tokens[index + 1].text == "const")
            while self.tokens[at + 1].text in ("const", "::") or self.tokens[at].text == "::":
                at += 1
            if self.tokens[at].text not in BUILTIN and self.tokens[at + 1].text in ("*", "&"):
                roots.add(self.tokens[at + 2].text)
        for index in self.tokens.where("=", 2) if roots else ():
            if self.tokens[index - 2].text in ("*", "&"):
                continue
            start = index + 1 + (self.tokens[index + 1].text == "*")
            end = self.postfix_end(start)
            if end and self.tokens[start].text in roots and self.tokens[end].text in (";", ","):
                self.replace(self.tokens[index + 1].start, self.tokens[index + 1].start, "msl_value(")
                self.replace(self.tokens[end].start, self.tokens[end].start, ")")

    def conditionals(self):
        """Reads the lvalue first in c ? lvalue : value of one class type, as clang gives the two different address
        spaces."""
        for index in self.tokens.where("?:"):
            end = self.postfix_end(index + 1)
            if self.tokens[index].text == "?":
                self.open_conditionals = getattr(self, "open_conditionals", 0) + 1
                wanted = (":",)
            else:
                # The colon of a case, a label, an access specifier or a constructor does not belong to a conditional.
                if not getattr(self, "open_conditionals", 0):
                    continue
                self.open_conditionals -= 1
                wanted = (";", ",", ")", "]", "}", ":")
            if end and self.tokens[end].text in wanted and self.tokens[index + 1].end <= self.tokens[end - 1].end:
                self.replace(self.tokens[index + 1].start, self.tokens[index + 1].start, "msl_value(")
                self.replace(self.tokens[end].start, self.tokens[end].start, ")")


def translate(text: str, language: float = 3.1, unrolled: bool = False) -> Translation:
    """Translates Metal text; raises CompileError for text that this version of Metal forbids, even if clang accepts it.

    unrolled: keeps the text's pragmas about unrolling loops, which slow down code for a CPU.
    """
    text = beyond_ascii(text)
    translator = _Translator(text, unrolled)
    for token, reason in findings(translator.tokens, language):
        translator.fail(token, reason)
    return translator.run()
