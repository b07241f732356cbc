"""Random histories of sequences in one pool, each compared with the model on the whole text without a cache."""

import copy
from dataclasses import dataclass, field

import mlx.core as mx
import numpy as np

VOCABULARY = 64
PROMPTS = (1, 3, 7, 8, 9, 17, 30)
MOST_ROWS, LONGEST = 5, 90


def logits_of(model, tokens: list[int]) -> mx.array:
    """The logits of the token behind the last one, in one pass over the text."""
    cache = [None] * len(model.layers)
    return model(mx.array([tokens]), cache=cache)[0, -1]


@dataclass
class Lives:
    """A batch of sequences that grows and shrinks.

    `texts`: the tokens of each row; its caches hold all except the last. `check(got, want)` compares logits.
    """

    model: object
    pool: object
    check: object
    seed: int = 0
    trims: bool = True
    texts: list[list[int]] = field(default_factory=list)
    batch: list = field(default_factory=list)
    kept: list = field(default_factory=list)  # (text, caches) of finished sequences, as a server keeps them

    def __post_init__(self):
        self.draw = np.random.default_rng(self.seed)

    def run(self, operations: int) -> dict[str, int]:
        """Runs this many random operations; returns how often each was done."""
        done: dict[str, int] = {}
        while sum(done.values()) < operations:
            name = str(self.draw.choice(["insert", "step", "step", "step", "evict", "again", "padded", "trim"]))
            if getattr(self, name)():
                done[name] = done.get(name, 0) + 1
        return done

    def tokens(self, count: int) -> list[int]:
        return self.draw.integers(0, VOCABULARY, count).tolist()

    def take_in(self, text: list[int], caches: list, known: int) -> None:
        """Adds a sequence whose caches hold `known` tokens of the text; the model reads the others except the last."""
        if text[known:-1]:
            self.model(mx.array([text[known:-1]]), cache=caches)
        merged = [cache.merge([cache]) for cache in caches]
        if self.batch:
            for mine, other in zip(self.batch, merged):
                mine.extend(other)
        else:
            self.batch = merged
        self.texts.append(text)

    def insert(self) -> bool:
        if len(self.texts) >= MOST_ROWS:
            return False
        text = self.tokens(1 + int(self.draw.choice(PROMPTS)))
        self.take_in(text, self.pool.caches(), 0)
        return True

    def again(self) -> bool:
        """Adds a prompt that starts like a finished one: both share pages until one of them writes."""
        if not self.kept or len(self.texts) >= MOST_ROWS:
            return False
        text, caches = self.kept[int(self.draw.integers(len(self.kept)))]
        caches, known = copy.deepcopy(caches), len(text) - 1
        if self.trims and known > 3 and all(cache.is_trimmable() for cache in caches):
            cut = int(self.draw.integers(0, known))
            known -= [cache.trim(cut) for cache in caches][0]
        self.take_in(text[:known] + self.tokens(1 + int(self.draw.integers(1, 20))), caches, known)
        return True

    def step(self) -> bool:
        """Generates one token for every row."""
        if not self.texts or max(map(len, self.texts)) > LONGEST:
            return bool(self.texts) and self.evict()
        logits = self.model(mx.array([[text[-1]] for text in self.texts]), cache=self.batch)[:, -1]
        for row, text in zip(logits, self.texts):
            self.check(row, logits_of(self.model, text))
            text.append(int(row.argmax()))
        return True

    def evict(self) -> bool:
        """Ends a sequence; half of the ended sequences are kept for later ones."""
        if not self.texts:
            return False
        number = int(np.argmax([len(text) for text in self.texts]))
        if self.draw.random() < 0.5:
            self.kept.append((list(self.texts[number]), [cache.extract(number) for cache in self.batch]))
            del self.kept[:-3]
        keep = [n for n in range(len(self.texts)) if n != number]
        for cache in self.batch:
            cache.filter(keep)
        self.batch = self.batch if keep else []
        del self.texts[number]
        return True

    def padded(self) -> bool:
        """Appends a different number of tokens to every row, padded on the right."""
        if not self.texts or max(map(len, self.texts)) > LONGEST:
            return False
        counts = self.draw.integers(1, int(self.draw.choice([4, 14])), len(self.texts)).tolist()
        more = [self.tokens(count) for count in counts]
        longest = max(counts)
        inputs = [[text[-1], *new[:-1]] + [0] * (longest - len(new)) for text, new in zip(self.texts, more)]
        for cache in self.batch:
            cache.prepare(lengths=counts, right_padding=[longest - count for count in counts])
        half = longest // 2
        for part in (slice(0, half), slice(half, longest)):
            if part.start < part.stop:
                self.model(mx.array(inputs)[:, part], cache=self.batch)
        for cache in self.batch:
            cache.finalize()
        self.texts = [text + new for text, new in zip(self.texts, more)]
        return True

    def trim(self) -> bool:
        """Takes back the last tokens of all rows, as rejected drafts are."""
        if not self.trims or not self.texts:
            return False
        count = int(self.draw.integers(1, 6))
        if min(map(len, self.texts)) <= count + 1:
            return False
        for cache in self.batch:
            cache.trim(count)
        self.texts = [text[:-count] for text in self.texts]
        return True

    def end(self) -> None:
        self.texts, self.batch, self.kept = [], [], []
