"""Shortens Metal text: removes comments, blanks and functions without callers or effect, and shortens names.

MLX copies the whole text at every call and hashes it at every launch. Line breaks stay, so that compilers' messages can
name a line.
"""

from __future__ import annotations

import re
from collections import Counter
from functools import lru_cache
from itertools import product
from string import ascii_lowercase, digits

# Blanks that separate no tokens: beside brackets, commas and semicolons, and between a word and an operator.
BLANK = re.compile(r"(?<=[,;(){}\[\]]) | (?=[,;(){}\[\]])|(?<=\w) (?=[^\w\s])|(?<=[^\w\s]) (?=\w)|(?<==) (?=\$)")
# A word, a number or a $CONSTANT; or a message or a directive, in which nothing is renamed.
TOKEN = re.compile(r'(\$?\w+|"[^"]*"|^#.*$)', re.M)
WORD = re.compile(r"\w+")
FUNCTION = re.compile(r"^(?:template<.*>\n?)?(?:static )?METAL_FUNC\b[^;{]*?(\w+)\([^{]*\{", re.M)
IDLE = re.compile(r"(?:template<.*>\n?)?METAL_FUNC void \w+\([^{]*\{\n?\}", re.M)  # returns nothing, does nothing
FOREIGN = re.compile(r"\b(?:Vote|fast|mem_flags|metal|mpp|nv|precise)((?:::\w+)+)")  # names in scopes of others
# Words of the language, of Metal's library and of the headers below the tile layers that templates use, or may come to
# use. A word that is missing here is renamed, and then fails to compile. Names that begin as in OF_METAL need no entry.
KEPT = frozenset(
    """
    METAL_FUNC as_type auto bool break case char const constant constexpr continue decltype device else enum false
    float float2 float3 float4 for half half2 half4 if int int2 int4 int64_t long metal namespace operator
    reinterpret_cast return short sizeof static static_assert struct switch template this thread threadgroup true
    typename uchar uint uint2 uint3 uint4 uint8_t ulong union ushort using vec void while
    FLT_MAX FLT_MIN INFINITY INT_MAX INT_MIN M_LN2_F M_LOG2E_F NAN abs all any ceil clamp clz copysign ctz dot exp
    exp10 exp2 floor fma fmax fmin fmod is_same_v isfinite isinf ldexp log log10 log2 max min mulhi popcount pow
    powr rint round rsqrt select sign sqrt tanh trunc
    fast mem_flags precise thread_elements threadgroup_barrier
    execution_simdgroup get_capacity get_destination_cooperative_tensor get_left_input_cooperative_tensor get_mask
    get_multidimensional_index get_right_input_cooperative_tensor mode mpp remove_addrspace_t run tensor_ops
    add_zero allocate arrive consumer_release consumer_wait open producer_acquire producer_commit wait zeros
    """.split()
)
OF_METAL = ("simd_", "simdgroup_")
OPERATORS = {"do", "if", "or"}  # words of two letters that the language has


@lru_cache(maxsize=1024)
def stripped(text: str) -> str:
    """The text without comments and needless blanks: the same tokens. Directives and messages keep their blanks."""
    lines = (re.sub(r"[ \t]*//.*", "", line).strip() for line in text.splitlines())
    return "".join((line if line[0] == "#" or '"' in line else BLANK.sub("", line)) + "\n" for line in lines if line)


@lru_cache(maxsize=256)
def minified(text: str, body: str, names: bool) -> str:
    """A stripped text without functions that have no callers, and with short names unless `names` are kept."""
    text = used(text, body)
    return text if names else renamed(text, body)


def used(text: str, body: str) -> str:
    """A stripped text without the functions that do nothing, or that neither it nor the body names."""
    text = without_idle(text)
    spans = [(found.start(), _end(text, found.end()), found[1]) for found in FUNCTION.finditer(text)]
    functions = {span[2] for span in spans}

    def counted(part: str) -> Counter:
        return Counter(word for word in WORD.findall(part) if word in functions)

    words = {span: counted(text[span[0] : span[1]]) for span in spans}
    named = counted(f"{text}\n{body}")
    dead = None
    while dead is None or dead:  # removing a function may leave another one without callers
        dead = [span for span in words if named[span[2]] == words[span][span[2]]]
        for span in dead:
            named.subtract(words.pop(span))
    for start, end, _ in reversed([span for span in spans if span not in words]):
        text = text[:start] + text[end:].removeprefix("\n")
    return text


def without_idle(text: str) -> str:
    """A stripped text without the functions that do nothing in it, and their calls, whose arguments change nothing."""
    idle, busy = Counter(), set()
    for found in FUNCTION.finditer(text):
        if IDLE.match(text, found.start()):
            idle[found[1]] += 1
        else:
            busy.add(found[1])
    for name, defined in idle.items():
        call = re.compile(rf"(?<=[;{{}}]\n)(?:\w+(?:\.|::))*{name}(?:<\w+>)?\([^;{{}}]*\);\n")
        if name not in busy and len(re.findall(rf"\b{name}\b", text)) == defined + len(call.findall(text)):
            text = call.sub("", text)
    return text


def _end(text: str, place: int) -> int:
    """The place behind the brace that closes the block whose body begins at `place`."""
    depth = 1
    while depth:
        closing = text.index("}", place)
        depth += text.count("{", place, closing) - 1
        place = closing + 1
    return place


def renamed(text: str, body: str) -> str:
    """The text with names of two letters, assigned in the order in which words occur. Words of the body, and words that
    the text does not define, keep their names."""
    pieces = TOKEN.split(text)
    words = dict.fromkeys(word for word in pieces[1::2] if word[0] not in '#"$0123456789')
    kept = KEPT.union("".join(FOREIGN.findall(text)).split("::"), re.findall(r"\w+", body))
    pairs = ("".join(pair[::-1]) for pair in product(digits + ascii_lowercase, ascii_lowercase))
    free = (pair for pair in pairs if pair not in words and pair not in OPERATORS)
    own = (word for word in words if len(word) > 2 and word not in kept and not word.startswith(OF_METAL))
    names = {word: next(free) for word in own}
    return "".join([names.get(piece, piece) for piece in pieces])
