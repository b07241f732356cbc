"""Methods without an address space that are called on objects in memory that threads share.

Metal refuses such a call: the object has to be in the thread's memory. Translated, it compiles, as methods.py says.
Where a text may, the compiler's driver compiles it once more with all macros of methods.py defined as `thread`, for the
errors alone.
"""

import re

_CLASS = re.compile(r"\b(?:struct|class)\s+(?:alignas\s*\([^)]*\)\s*)?(\w+)")
_SHARED = re.compile(r"(?:\b(?:device|threadgroup)\s|msl_threadgroup_variable<)\s*(?:const\s+)?(?:\w+::)*(\w+)")
_WORD = re.compile(r"\w+")
_BRACE = re.compile(r"[{};]")
_PLACE = re.compile(r"(metal:\d+:\d+: error: ).*")
# The last of them is what clang says of a constant object, even of a method that is marked const.
_ELSEWHERE = re.compile(
    "(?:cannot initialize object parameter of type '(?:const )?__private .* type '[^']*"
    "|'this' object is in address space '|'this' argument to member function .* has type 'const )__(global|local)\\b"
)
_SPACE_NAMES = {"global": "device", "local": "threadgroup"}


def possible(text: str) -> bool:
    """Whether a translated text has methods without an address space, and classes of its own in memory that threads
    share."""
    names: set[str] = set()
    for head in _CLASS.finditer(text) if "method_space" in text else ():
        body = _braced(text, head.end())
        if "method_space" in body or not names.isdisjoint(_WORD.findall(body)):  # its own, or a member's
            names.add(head[1])
    return not names.isdisjoint(_SHARED.findall(text))


def _braced(text: str, start: int) -> str:
    """The body of the class whose name ends at `start`; of a mere declaration, nothing."""
    depth = 0
    for brace in _BRACE.finditer(text, start):
        depth += (brace[0] == "{") - (brace[0] == "}")
        if depth <= 0:
            return text[start : brace.end()]
    return text[start:]


def called(errors: str) -> str | None:
    """The error about the first call of such a method on an object that is not the thread's, of those of clang."""
    place = ""
    for row in errors.splitlines():
        place = found[1] if (found := _PLACE.match(row)) else place
        if place and (found := _ELSEWHERE.search(row)):
            space = _SPACE_NAMES[found[1]]
            reason = f"an object in {space} memory, and the method is for objects of the thread"
            return f"{place}{reason}: write {space} behind its parameters, or copy the object first"
    return None
