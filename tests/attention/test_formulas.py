"""The language of Score and Visible: what is not in it is refused with line and column, and so are wrong arguments."""

import mlx.core as mx
import numpy as np
import pytest

from mlx_flash import Score, UnsupportedProblem, Visible, attention, explain

TABLE = mx.array([1.5, -2.0, 0.25, 8.0])
HOSTILE = {
    "pointer": "*(device float*)0", "address": "s + (&s)[0]", "reference": "float& r = s; return r;",
    "array-write": "table[0] = 1.0; return s;", "parameter-write": "s = 1.0; return s;",
    "position-write": "q += 1; return s;", "number-write": "n = 2; return s;", "while": "while (true) {} return s;",
    "do": "do {} while (true); return s;", "goto": "a: goto a; return s;",
    "endless-for": "for (int i = 0; i < 3; i--) {} return s;", "open-for": "for (;;) {} return s;",
    "for-of-array": "for (int i = 0; i < ids[0]; i++) {} return s;",
    "long-for": "for (int i = 0; i < 1000000; i++) {} return s;",
    "nested-for": "for (int i = 0; i < 99; i++) for (int j = 0; j < 99; j++) { float x = 1; } return s;",
    "counter-write": "for (int i = 0; i < 3; i++) { i = 0; } return s;",
    "function": "float f(float x) { return f(x); } return f(s);", "unknown-function": "simd_sum(s)",
    "atomic": "atomic_fetch_add_explicit(0, 1, 2)", "barrier": "threadgroup_barrier(3); return s;",
    "macro": "#define q 3\ns", "include": '#include "x"\ns', "string": '"text"', "character": "'a'",
    "not-ascii": "s + \u03b1", "space": "device float* p; return s;",
    "threadgroup": "threadgroup float x = 1; return s;", "lambda": "[&](){ return s; }()",
    "struct": "struct A {}; return s;", "member": "args.scale", "scope": "flash::D", "template": "as_type<float>(1)",
    "cast": "(float)1", "asm": 'asm(""); return s;', "sizeof": "sizeof(s)", "new": "new float", "comma": "(s, s)",
    "type": "half x = 1; return s;", "keyword-name": "float return = 1; return s;",
    "shadow": "float q = 1; return s;", "twice": "float x = 1; float x = 2; return s;",
    "no-value": "float x; return x;", "kernel-name": "scratch", "kernel-argument": "formula_data",
    "no-return": "float x = s;", "half-return": "if (k > q) return s;", "unused-expression": "s; return s;",
    "assignment-inside": "s + (n = 2)", "bool-result": "k < q", "float-index": "table[s]",
    "missing-index": "table + s", "index-of-number": "n[0]", "two-indices": "table[0][0]", "float-modulo": "s % 2",
    "too-few": "max(s)", "too-many": "abs(s, s)", "empty": "", "blank": " \n ", "unclosed": "(s",
    "brace": "{ return s;", "deep": "(" * 5000 + "s" + ")" * 5000, "deep-minus": "-" * 5000 + "s",
    "long": "s + " * 5000 + "s", "large-integer": "4294967296", "large-float": "1e999", "hexadecimal": "0x10",
    "suffix": "3u", "escape": "s \\\n + 1", "trigraph": "??=define", "number-and-name": "3abc",
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_refused_with_line_and_column(name):
    with pytest.raises(ValueError, match=r"\[mlx_flash\.Score\] text, line \d+, column \d+: expected .*, got "):
        Score(HOSTILE[name], table=TABLE, ids=mx.array([1, 2]), n=3)


def test_an_error_points_at_its_place():
    with pytest.raises(ValueError) as found:
        Score("float x = 2.0;\nreturn s + slop * x;", slope=1.0)
    lines = str(found.value).splitlines()
    assert "line 2, column 12" in lines[0] and "slope" in lines[0]
    assert lines[1] == "  return s + slop * x;" and lines[2].index("^") == lines[1].index("slop ")


@pytest.mark.parametrize("text", ["s + " * 900 + "slop", "(" * 5000 + "s" + ")" * 5000], ids=["near-its-end", "all"])
def test_errors_of_long_lines_are_short(text):
    with pytest.raises(ValueError) as found:
        Score(text)
    said, shown, mark = str(found.value).splitlines()
    column = int(said.split("column ")[1].split(":")[0])
    assert len(shown) <= 130 and shown[mark.index("^")] == text[column - 1]


@pytest.mark.parametrize(
    "named",
    [
        {"s": 1.0}, {"q": TABLE}, {"exp": 1.0}, {"float": 1}, {"while": 2}, {"segment": 1}, {"x-y": 1}, {"é": 1.0},
        {"x": "text"}, {"x": None}, {"x": mx.zeros((0,))}, {"x": mx.zeros((1, 1, 1, 1, 1))}, {"x": mx.array(1j)},
        {"x": 2**31}, {"x": 1e39}, {"x": mx.array(np.array([2**40]))}, {"x": np.array(["a"])}, {"x": object()},
    ],
    ids=range(18),
)  # fmt: skip
def test_names_and_arrays_that_make_no_sense(named):
    with pytest.raises(ValueError, match=r"\[mlx_flash\.Score\]"):
        Score("s", **named)


def test_predicates():
    with pytest.raises(ValueError, match="type bool, got int"):
        Visible("k - q")
    with pytest.raises(ValueError, match="known name"):
        Visible("s > 0.0")
    with pytest.raises(ValueError, match="multiple of 32"):
        Visible("k < q", block=20)


def test_explain_and_kernels_name_the_score():
    """The name is a digest of the text, the same for other numbers and for other arrays with these axes."""
    texts = [Score("s * n + t[h]", n=n, t=mx.ones(size)) for n, size in ((2.0, 8), (3.0, 9))]
    explained = [explain(head_dim=64, family="apple9", score=text, visible="k < q") for text in texts]
    digest = f"score_{texts[0].formula.digest}"
    assert all(digest in str(one) and digest in one.kernels[0].kernel for one in explained)
    assert [one.kernel for one in explained[0].kernels] == [one.kernel for one in explained[1].kernels]
    other = explain(head_dim=64, family="apple9", score="s * 2.0").kernels[0].kernel
    assert other not in [one.kernel for one in explained[0].kernels]


def test_arguments_of_a_call():
    q = mx.zeros((1, 4, 8, 16))
    for score, error in ((3, "Score or its text"), ("s +", "expected an expression"), (Visible("k < q"), "Score")):
        with pytest.raises(ValueError, match=error):
            attention(q, q, q, score=score)
    with pytest.raises(ValueError, match="at least 4 numbers along axis 0"):
        attention(q, q, q, score=Score("s * t[h]", t=mx.ones(3)))
    with pytest.raises(UnsupportedProblem, match="t of score"):
        mx.grad(lambda t: attention(q, q, q, score=Score("s * t[h] + t[0]", t=t)).sum())(mx.ones(4))
