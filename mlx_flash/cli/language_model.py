"""`python -m mlx_flash lm`: mlx-lm's generation with and without the patch, compared."""

from __future__ import annotations

import os
from contextlib import contextmanager, nullcontext

import mlx.core as mx

from ..backends import Backend, backend, current_backend, use_backend
from ..common.errors import CommandError, UnsupportedProblem, need
from ..integrations import patch
from ..lm.generation import Divergence, Run, divergence, fastest, generate
from ..lm.models import TINY_WORDS, described, load, mlx_lm, tiny_model
from .console import progress

ROUNDS = 2  # rounds of each kind, in turns, after one round for warming up
NAMES = ("without mlx_flash", "with mlx_flash")


def lm(arguments) -> int:
    """Generates with and without the patch and prints both. Returns 0 if the tokens agree up to rounding, else 1."""
    mlx_lm()
    model, tokenizer = load(arguments.model) if arguments.model else tiny_model()
    prompt = mx.array(tokenizer.encode(arguments.prompt))
    if not prompt.size:
        raise CommandError("--prompt: expected some text, got none. Leave it out for a default")
    options = _cache_options(arguments)
    with use_backend(*_backend(arguments)) as chosen:
        _introduce(chosen, arguments, prompt.size)
        runs, report = _rounds(model, tokenizer, prompt, arguments.max_tokens, options)
        ours, theirs = (runs[name] for name in reversed(NAMES))
        diverged = divergence(model, prompt, ours[0], theirs[0], options, patch)
    _conclude(runs, report, diverged, chosen)
    return 0 if diverged is None or diverged.tie else 1


def _cache_options(arguments) -> dict:
    if arguments.kv_bits is None:
        return {}
    return {"kv_bits": arguments.kv_bits, "kv_group_size": arguments.kv_group_size, "quantized_kv_start": 0}


def _backend(arguments) -> tuple[str, str | None]:
    """The backend that was named, else this machine's default; the tiny model runs its kernels on the simulator."""
    if arguments.backend:
        return arguments.backend, arguments.family
    current = current_backend()
    if current.family or arguments.model or os.environ.get("MLX_FLASH_BACKEND"):
        return current.name, arguments.family or (current.family.name if current.family else None)
    try:
        backend("simulator", arguments.family)
    except UnsupportedProblem:  # there is no compiler
        return "reference", None
    return "simulator", arguments.family


def _rounds(model, tokenizer, prompt: mx.array, count: int, options: dict) -> tuple[dict[str, list[Run]], patch]:
    """The measured runs of each kind, taken in turns, and the report of one patched run."""
    kinds = dict(zip(NAMES, (nullcontext, patch)))
    runs, report = {name: [] for name in NAMES}, None
    with _bars(count) as bar:
        for turn in range(ROUNDS + 1):
            for name, kind in kinds.items():
                with kind() as patched, bar(f"{name}, {f'round {turn}' if turn else 'warming up'}") as tick:
                    try:
                        run = generate(model, tokenizer, prompt, count, options, tick)
                    except (ValueError, NotImplementedError, RuntimeError) as error:
                        if patched is not None:  # the unpatched run worked: a defect of this package, not bad input
                            raise
                        raise CommandError(f"mlx-lm cannot run this model and cache ({described(error)})") from error
                report = patched or report
                if turn:
                    runs[name].append(run)
    return runs, report


@contextmanager
def _bars(count: int):
    """Yields a function that opens the context of a phase; the context's value is called for each token.

    With rich a phase is a progress bar on stderr, without it one printed line.
    """
    try:
        bars = progress("lm", need("rich.console", "lm", "lm").Console(stderr=True), transient=True)
    except CommandError:
        bars = None

    @contextmanager
    def phase(name: str):
        if bars is None:
            print(name, flush=True)
            yield lambda: None
            return
        task = bars.add_task(f"{name:<28}", total=count, note="tokens")
        yield lambda: bars.advance(task)

    with bars or nullcontext():
        yield phase


def _introduce(chosen: Backend, arguments, tokens: int) -> None:
    family = f", kernels of {chosen.family.name} ({chosen.family.chips})" if chosen.family else ", no kernels"
    cache = f", KV cache of {arguments.kv_bits} bits" if arguments.kv_bits else ""
    print(f"mlx-lm, attention on {chosen.name}{family}: {arguments.model or TINY_WORDS}")
    print(f"prompt of {tokens} tokens, at most {arguments.max_tokens} more{cache}", flush=True)


def _conclude(runs: dict[str, list[Run]], report: patch, diverged: Divergence | None, chosen: Backend) -> None:
    print(f"\n{'tokens per second':<20}{'prompt':>12}{'generation':>12}   best of {ROUNDS} rounds in turns")
    for name, of_kind in runs.items():
        print(f"{name:<20}" + "".join(f"{speed:>12.1f}" for speed in fastest(of_kind)))
    if not chosen.gpu:
        print(f"(the {chosen.name} backend's speed on this CPU says nothing about a GPU's)")
    print(f"\n{report}\ntext: {runs[NAMES[1]][0].text!r}")
    count = len(runs[NAMES[1]][0].tokens)
    if diverged is None:
        print(f"the tokens are the same, all {count}")
        return
    print(
        f"the tokens differ from number {diverged.position + 1} of {count}: there MLX's two best tokens differ by "
        f"{diverged.gap:.2g} in log-probability, and the two runs by {diverged.difference:.2g}"
        f"{': a tie, decided by rounding' if diverged.tie else ''}"
    )
