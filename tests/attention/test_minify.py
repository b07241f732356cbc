"""Texts are made small for MLX: the same program, with shorter names and without what nothing calls."""

import re
from collections import Counter
from dataclasses import replace
from itertools import chain
from pathlib import Path

import mlx.core as mx
import pytest
from arrays import bits
from machines import each_simulated_family
from problems import make_problem
from table_rows import EVERY, KINDS, tensor_builds_of

import mlx_flash
from mlx_flash import attention, use_backend
from mlx_flash.autodiff.call import clear_cache
from mlx_flash.kernels import minify, source
from mlx_flash.kernels.devices import FAMILIES
from mlx_flash.kernels.plan import plan, plan_of
from mlx_flash.metal.frontend.tokens import tokenize
from mlx_flash.problem.variants import Variants

TEMPLATES = sorted((Path(mlx_flash.__file__).parent.parent / "templates").rglob("*.metal"))
MOST = Variants(mask="float16", **dict.fromkeys(("causal", "window", "alibi", "sinks", "softcap", "segments"), True))


def tokens(text: str) -> list[str]:
    """The tokens of a text, with a number for every constant to come."""
    return [token.text for token in tokenize(re.sub(r"\$\w+", "0", text))]


@pytest.mark.parametrize("template", TEMPLATES, ids=lambda path: path.stem)
def test_blanks_that_go_separate_no_tokens(template):
    """In every branch of every template. A hexadecimal number before a sign would take the sign into the number."""
    text = template.read_text()
    short = minify.stripped(text)
    assert tokens(short) == tokens(text) and len(short) < len(text)
    assert not re.search(r"\b0[xX][0-9a-fA-F]*[eE][+-]", short)


@pytest.fixture(scope="module")
def texts() -> list[tuple[str, str, str]]:
    """(what is called of a kernel's text, its body, the text that MLX gets), plain and with all that goes together, for
    each kind of kernel, way to multiply and way to read."""
    found, small = {}, source.minified

    def recording(text, body, names):
        found[text, body] = minify.used(text, body), body, small(text, body, names)
        return found[text, body][-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(source, "minified", recording)
        rows = {(kind, row.tiles, family.uses_threadgroup_memory): (kind, row, family, *rest)
                for kind, row, family, *rest in chain(EVERY, *map(tensor_builds_of, KINDS))}  # fmt: skip
        for *start, variants, threads in rows.values():
            for chosen in (variants, replace(MOST, quantization=variants.quantization)):
                source.build.__wrapped__(*start, chosen, threads)
        problem = make_problem(1, 4, 2, 128, 256, 64, 64, "float16", causal=True)
        for kind in KINDS:  # on neural accelerators
            made = plan_of(kind, problem, FAMILIES["apple10"])
            source.build.__wrapped__(
                kind,
                made.config,
                made.text_family,
                "float16",
                64,
                64,
                problem.variants.text,
                made.max_threads,
            )
    return list(found.values())


@pytest.mark.long
def test_names_change_one_to_one(texts):
    """A new name stands for one old one and occurs nowhere before; what is not the text's own stays as it is."""
    for before, body, after in texts:
        old, new = tokens(before), tokens(after)
        assert len(old) == len(new)
        names = dict(zip(old, new))
        assert all(names[one] == other for one, other in zip(old, new)) and len({*names.values()}) == len(names)
        changed = {one: other for one, other in names.items() if one != other}
        assert not {*changed.values()} & {*old, *re.findall(r"\w+", body), *minify.KEPT, "do", "if", "or"}
        assert not {*changed} & {*re.findall(r"\w+", body), *minify.KEPT}
        assert all(re.fullmatch(r"[A-Za-z_]\w\w+", one) and re.fullmatch(r"[a-z]\w", changed[one]) for one in changed)
        assert before.count("\n") == after.count("\n")


TYPES = r"\b(?:bool|int|uint|float|long|ulong|ushort|short|auto|void|half|uchar|[A-Z]\w*|\w+_t|u?int\d|float\d)\b\s*"
DECLARED = re.compile(
    rf"\b(?:struct|using|namespace|typename)\s+(\w+)|(?:{TYPES}|[>&*])(\w+)(?=[=;,()\[{{:>])|,(\w+)(?=[=;,)\[{{])"
)


def test_what_gets_another_name_is_declared_here(texts):
    """A word that is not would be the language's or the library's: it belongs into KEPT."""
    for before, _, after in texts:
        declared = {word for found in DECLARED.findall(before) for word in found}
        changed = {old for old, new in zip(minify.TOKEN.split(before), minify.TOKEN.split(after)) if old != new}
        assert changed - declared == set()


def test_functions_that_nothing_calls_are_gone(texts):
    """Every function that remains is named in another place."""
    for before, body, _ in texts:
        times = Counter(re.findall(r"\w+", before + body))
        assert [found[1] for found in minify.FUNCTION.finditer(before) if times[found[1]] < 2] == []


SOME = """namespace a{
struct S{
int x;
METAL_FUNC int once()const thread{if(x){return 1;}return 0;}
METAL_FUNC int never()const thread{return x;}
};
template<typename T>METAL_FUNC T helper(T x){
return x;
}
template<typename T>
METAL_FUNC T again(T x){
#pragma clang loop unroll(full)
for(int i=0;i<3;i++){again(x);}
return helper(x);
}
static METAL_FUNC int both(int x){return x;}
static METAL_FUNC int both(float x){return both(int(x));}
METAL_FUNC void entry(thread const S&s,int n){
static_assert(true, "text of a message");
both(s.once());
}
}
"""


def test_calls_are_followed():
    """A function called by unused functions only, itself included, is unused; overloads stay together."""
    text = minify.used(SOME, "a::entry(s, 1);")
    assert [name for name in ("once", "never", "helper", "again", "both", "entry") if f" {name}(" in text] == [
        "once", "both", "entry",
    ]  # fmt: skip
    assert text.count("both(") == 4 and text.count("{") == text.count("}") == 7
    assert minify.used(SOME, "again(1); a::entry(s, 1);") == SOME.replace(
        "METAL_FUNC int never()const thread{return x;}\n", ""
    )


IDLE = """struct S{
METAL_FUNC void arrive(int)thread{}
METAL_FUNC void open(int x)thread{
}
};
struct T{
METAL_FUNC void open(int x)thread{y=x;}
};
template<int N>METAL_FUNC void begin(thread S&){}
METAL_FUNC void nested(int x){}
METAL_FUNC void entry(thread S&s,thread T&t,int n){
s.arrive(n+
1);
s.open(n);
t.open(n);
tile::begin<2>(s);
if(n)
nested(n);
}
"""


def test_functions_that_do_nothing_are_gone_with_their_calls():
    """But for names that another function has too, and for calls that are not statements by themselves."""
    assert minify.used(IDLE, "entry(s, t, 1);") == (
        IDLE.replace("METAL_FUNC void arrive(int)thread{}\n", "").replace("s.arrive(n+\n1);\n", "")
        .replace("template<int N>METAL_FUNC void begin(thread S&){}\n", "").replace("tile::begin<2>(s);\n", "")
    )  # fmt: skip


def test_directives_messages_and_constants_to_come_stay():
    text = '#include <length/length>\nconstant constexpr int length=$LENGTH;\nstatic_assert(length > 0, "length");\n'
    assert minify.renamed(text, "") == text.replace(" length", " a0").replace("(length", "(a0")


def test_names_are_enough():
    """There are enough names of two letters that are no words of the language and not in the text."""
    words = [f"w{number:03}" for number in range(900)]
    short = minify.renamed(" ".join([*words, "a0", "b0"]), "").split()
    assert len({*short}) == 902 and max(map(len, short)) == 2 and not {"do", "if", "or"} & {*short}


def forget():
    """Texts built, and what is kept of calls that used them."""
    source.build.cache_clear()
    plan.cache_clear()
    clear_cache()


@each_simulated_family
def test_results_have_the_same_bits(family, monkeypatch):
    q, k, v = (mx.random.normal((1, 2, 9, 8), key=mx.random.key(seed)) for seed in range(3))
    found = []
    for keep in ("", "1"):
        monkeypatch.setenv(source.KEEP_COMMENTS, keep)
        forget()
        with use_backend("simulator", family):
            out = attention(q, k, v, causal=True)
            mx.eval(out)
            found.append(bits(out))
    forget()
    assert found[0] == found[1]
