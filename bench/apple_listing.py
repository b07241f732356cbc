"""Reads a listing of M1 instructions: basic blocks, loops, and what one visit of a loop issues on its usual path.

A listing is made of blocks, one instruction a line:

    block3 {
       r0...r1 = simd_matmul r2, r3, r0...r1
    } -> block4 block5

Registers may be numbered before or after allocation; of several listings the last with the most products counts.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field

MEMORY = ("dev_load", "dev_store", "tg_load", "tg_store")
NAMED = {
    "simd_matmul": "matmul", "local_load": "tg_load", "local_store": "tg_store", "device_load": "dev_load",
    "device_store": "dev_store", "stack_load": "spill_load", "stack_store": "spill_store", "wait": "wait",
    "threadgroup_barrier": "barrier", "mov": "move", "mov_imm": "move", "swap": "move",
    "fcmpsel": "select", "icmpsel": "select", "convert": "convert", "get_sr": "other", "stop": "other", "trap": "other",
    **dict.fromkeys(("exp2", "log2", "rcp", "rsqrt"), "exp2"),
    **dict.fromkeys(("fadd", "fmul", "ffma", "hadd", "hmul", "hfma", "floor", "ceil", "trunc", "roundeven"), "float"),
    **dict.fromkeys(("imad", "bfi", "bfeil", "extr", "asr"), "int_slow"),  # the pipe of a quarter of the rate
    **dict.fromkeys(("iadd", "bitop", "intl", "popcount", "ffs", "bitrev", "not", "and", "or", "xor"), "int"),
    **dict.fromkeys(("nor", "nand", "xnor", "andn1", "andn2", "orn1", "orn2"), "int"),
}  # fmt: skip
CONTROL = ("if_", "else_", "while_", "pop_exec", "jmp_exec", "push_exec", "break", "nest", "begin_cf")
BLOCK = re.compile(r"^block(\d+) \{\n(.*?)^\}(?: -> ((?:block\d+ ?)+))?.*?$", re.M | re.S)
# Two registers exchanged by three instructions, where no third one is free: moves
SWAP = re.compile(r"^ *(r\w+) = xor \1, (r\w+)\n *\2 = xor \1, \2\n *\1 = xor \1, \2\n", re.M)


def class_of(line: str) -> str:
    """The class of one instruction."""
    text = line.split(" = ", 1)[-1].strip()
    name = text.split(" ", 1)[0].split(".")[0]
    if name in ("fadd", "hadd") and "#-0.0" in text:
        return "convert"  # x + -0 copies x to a register of another width
    if name == "bitop" and text.endswith(", #0, #a"):
        return "move"
    if name in NAMED:
        return NAMED[name]
    if "shuffle" in name or "ballot" in name or name.startswith(("simd_", "quad_")):
        return "shuffle"
    if name.startswith(CONTROL):
        return "branch"
    return "barrier" if "barrier" in name else "other"


@dataclass
class Block:
    """A basic block: `after`, the blocks that may follow it."""

    index: int
    after: list[int]
    counts: Counter
    first_words: list[str]  # of its first two instructions


@dataclass
class Loop:
    """A natural loop: its head, the blocks in it, and the loops inside; `trips` of one visit from outside."""

    head: int
    blocks: set[int]
    inner: list[Loop] = field(default_factory=list)
    trips: float = 1


def parse(text: str) -> dict[int, Block]:
    """The blocks of the kernel's final listing, by number, in order. ValueError without one."""
    listings: list[dict[int, Block]] = [{}]
    for found in BLOCK.finditer(text):
        index = int(found[1])
        if index in listings[-1]:
            listings.append({})
        text = SWAP.sub("swap\n" * 3, found[2])
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        after = [int(word[5:]) for word in (found[3] or "").split()]
        counts = Counter(class_of(line) for line in lines)
        counts["phi"] = sum(" phi " in line for line in lines)
        listings[-1][index] = Block(index, after, counts, [line.split(" ", 1)[0] for line in lines[:2]])
    if not listings[0]:
        raise ValueError("no block in the listing: expected lines such as 'block0 {', as the offline compiler prints")

    def products(listing):
        return sum(block.counts["matmul"] for block in listing.values())

    most = max(map(products, listings))
    final = [x for x in listings if products(x) == most and not any(block.counts["phi"] for block in x.values())]
    for block in final[-1].values():
        del block.counts["phi"]
    return final[-1]


def loops_of(code: dict[int, Block]) -> list[Loop]:
    """The outermost loops, in order, each with those inside it."""
    position = {index: at for at, index in enumerate(code)}
    before: dict[int, list[int]] = {index: [] for index in code}
    for block in code.values():
        for other in block.after:
            before[other].append(block.index)
    bodies: dict[int, set[int]] = {}
    for block in code.values():
        for head in block.after:
            if position[head] > position[block.index]:
                continue
            body, left = {head, block.index}, [block.index]
            while left:
                for other in before[left.pop()]:
                    if other not in body and position[other] >= position[head]:
                        body.add(other)
                        left.append(other)
            bodies[head] = bodies.get(head, set()) | body
    loops = sorted((Loop(head, body) for head, body in bodies.items()), key=lambda loop: len(loop.blocks))
    outermost = []
    for at, loop in enumerate(loops):
        parent = next((other for other in loops[at + 1 :] if loop.head in other.blocks), None)
        (parent.inner if parent else outermost).append(loop)
    for loop in loops:
        loop.inner.sort(key=lambda inner: position[inner.head])
    return sorted(outermost, key=lambda loop: position[loop.head])


def every(loops: list[Loop]):
    """Each loop, and all inside it."""
    for loop in loops:
        yield loop
        yield from every(loop.inner)


class UsualPath:
    """The instructions of one iteration of a loop on its usual path: every condition leads to products, else to
    memory, else to the shorter branch, also if both branches have products and one of them masks."""

    def __init__(self, code: dict[int, Block]):
        self.code = code
        self.position = {index: at for at, index in enumerate(code)}
        self.behind = self._postdominators()

    def _postdominators(self) -> dict[int, set[int]]:
        """The blocks that every way from a block leads through."""
        found = {index: set(self.code) if block.after else {index} for index, block in self.code.items()}
        changed = True
        while changed:
            changed = False
            for index in reversed(self.code):
                after = self.code[index].after
                through = {index} | set.intersection(*(found[a] for a in after)) if after else {index}
                if through != found[index]:
                    found[index], changed = through, True
        return found

    def _following(self, block: int, inside: set[int]) -> list[int]:
        return [a for a in self.code[block].after if a in inside and self.position[a] > self.position[block]]

    def _way(self, start: int, join: int | None, inside: set[int]) -> set[int]:
        seen, left = set(), [start]
        while left:
            block = left.pop()
            if block != join and block not in seen and block in inside:
                seen.add(block)
                left += self._following(block, set(self.code))
        return seen

    def choose(self, block: int, inside: set[int]) -> tuple[int, set[int]]:
        """(the successor that is taken, the blocks that are left out)."""
        one, other = self.code[block].after
        common = (self.behind[one] & self.behind[other]) - {block}
        later = (x for x in common if self.position[x] > self.position[block])
        join = min(later, key=self.position.get, default=None)
        both = [self._way(start, join, inside) for start in (one, other)]
        ways = [both[0] - both[1], both[1] - both[0]]
        counts = [sum((self.code[b].counts for b in way), Counter()) for way in ways]
        products = [count["matmul"] for count in counts]

        def score(count: Counter) -> int:
            total = sum(count.values())
            if all(products):
                return -total
            return count["matmul"] if any(products) else 1000 * sum(count[name] for name in MEMORY) - total

        taken = 0 if score(counts[0]) >= score(counts[1]) else 1
        return (one, other)[taken], ways[1 - taken]

    def steps(self, loop: Loop):
        """The blocks and inner loops that one iteration passes, with the blocks left out beside each."""
        heads = {inner.head: inner for inner in loop.inner}
        at, seen = loop.head, set()
        while at is not None and at not in seen:
            seen.add(at)
            if at in heads and at != loop.head:
                yield heads[at], None
                leaving = [a for b in heads[at].blocks for a in self.code[b].after if a not in heads[at].blocks]
                at = min(leaving, key=self.position.get) if leaving else None
                continue
            after, left_out = self._following(at, loop.blocks), None
            here, at = at, after[0] if after else None
            if len(after) == 2:
                at, left_out = self.choose(here, loop.blocks)
            yield self.code[here], left_out

    def counts(self, loop: Loop) -> Counter:
        """Instructions of one iteration by class, inner loops taken `trips` times."""
        total: Counter = Counter()
        for step, left_out in self.steps(loop):
            if isinstance(step, Loop):
                total += Counter({name: count * step.trips for name, count in self.counts(step).items()})
                continue
            total += step.counts
            # What a way that is not taken still costs: an `else`, and the jump over it.
            others = [a for a in step.after if a in (left_out or ())]
            words = self.code[others[0]].first_words if others else []
            if words and words[0].startswith("else_"):
                total["branch"] += 1 + (len(words) > 1 and words[1].startswith("jmp_exec"))
        return total
