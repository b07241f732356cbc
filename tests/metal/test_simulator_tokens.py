"""The tables of a text's tokens say what a search through the tokens says, in texts with errors too."""

import random

import pytest

from mlx_flash.metal.frontend.tokens import Tokens, macro_tokens, matching, tokenize

SEEDS = range(12)
WORDS = ("(", ")", "[", "]", "{", "}", "[[", "]]", "a", ";", "\n#define M (a ; a)\n", "\n#pragma a\n")


def _text(seed: int) -> str:
    chosen = random.Random(seed)
    return " ".join(chosen.choice(WORDS) for _ in range(chosen.randrange(60)))


@pytest.mark.parametrize("seed", SEEDS)
def test_brackets_that_close(seed):
    """Many of these texts leave brackets open, or close more than they opened."""
    tokens = tokenize(_text(seed))
    for index, token in enumerate(tokens):
        if token.text in ("(", "[", "{", "[["):
            assert matching(tokens, index) == matching(list(tokens), index)


@pytest.mark.parametrize("seed", SEEDS)
def test_places(seed):
    tokens = tokenize(_text(seed))
    assert tokens.directives == [index for index, token in enumerate(tokens) if token.kind == "directive"]
    for texts in (("a",), "()", ("a", "a", ";", "]]"), ("absent",)):
        assert tokens.where(texts) == [index for index, token in enumerate(tokens) if token.text in texts]
        few = [index for index in range(len(tokens) - 3) if tokens[index].text in texts]
        assert tokens.where(texts, 3) == few


@pytest.mark.parametrize("seed", SEEDS)
def test_macros_among_the_tokens(seed):
    tokens = tokenize(_text(seed))
    wanted = Tokens()
    for token in tokens:
        wanted += macro_tokens(token) or [token]
    facts = [[(token.kind, token.text, token.start) for token in one] for one in (tokens.with_macros, wanted)]
    assert facts[0] == facts[1]
