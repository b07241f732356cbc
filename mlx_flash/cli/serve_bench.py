"""Requests that arrive at random, served by mlx-lm's BatchGenerator with its own caches and with a PagePool's."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from statistics import median

import mlx.core as mx
import numpy as np

from ..backends import current_backend, use_backend
from ..common.errors import need
from .console import save, write

OWN, PAGED = "mlx-lm's caches", "pages"
BUSY = 2.0  # steps between two arrivals, in the mean
PROMPTS, ANSWERS = (16, 400), (16, 120)  # tokens, from and to


@dataclass(frozen=True)
class Request:
    """`step`: of its arrival; `answer`: tokens to generate."""

    step: int
    prompt: tuple[int, ...]
    answer: int


@dataclass
class Record:
    """The measurements of one run. `active`: bytes in use after every step beyond those before the first one, which are
    the model's; `transient`: bytes that a step needed beyond what was in use before and after it: copies, for the
    most."""

    tokens: dict[int, list[int]] = field(default_factory=dict)
    active: list[int] = field(default_factory=list)
    transient: list[int] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def generated(self) -> int:
        return sum(map(len, self.tokens.values()))

    def summary(self) -> dict:
        return {
            "tokens_per_second": round(self.generated / self.seconds, 1),
            "most_bytes": max(held + more for held, more in zip(self.active, self.transient)),
            "most_bytes_kept": max(self.active),
            "bytes_of_a_step": int(median(self.transient)),
            "bytes_that_came_and_went": sum(self.transient),
        }


def requests_of(count: int, vocabulary: int, seed: int) -> list[Request]:
    """Random prompts and answers, at exponential distances."""
    draw, step, found = np.random.default_rng(seed), 0.0, []
    for _ in range(count):
        step += draw.exponential(BUSY)
        prompt = tuple(draw.integers(0, vocabulary, draw.integers(*PROMPTS)).tolist())
        found.append(Request(int(step), prompt, int(draw.integers(*ANSWERS))))
    return found


def served(model, requests: list[Request]) -> Record:
    """All requests through one BatchGenerator; each is inserted at its step."""
    generation = need("mlx_lm.generate", "serve-bench", "lm")
    generator = generation.BatchGenerator(model, stop_tokens=[])
    waiting, record, numbers, step = list(requests), Record(), {}, 0
    mx.synchronize()
    mx.clear_cache()
    before, started = mx.get_active_memory(), time.perf_counter()
    while waiting or len(record.tokens) < len(requests) or _unfinished(record, requests):
        while waiting and waiting[0].step <= step:
            one = waiting.pop(0)
            (number,) = generator.insert([list(one.prompt)], [one.answer])
            numbers[number] = len(numbers)
            record.tokens[numbers[number]] = []
        held = mx.get_active_memory()
        mx.reset_peak_memory()
        for response in generator.next()[1]:
            record.tokens[numbers[response.uid]].append(response.token)
        active = mx.get_active_memory()
        record.transient.append(max(0, mx.get_peak_memory() - max(held, active)))
        record.active.append(active - before)
        step += 1
    record.seconds = time.perf_counter() - started
    return record


def _unfinished(record: Record, requests: list[Request]) -> bool:
    return any(len(record.tokens[n]) < one.answer for n, one in enumerate(requests))


def serve_bench(arguments) -> int:
    """Serves the same requests twice, prints a table of both runs, and draws the memory over time. Kernels read pages
    in place; the reference backend gathers them at every step, which shows in the memory of a step."""
    from ..integrations import patch
    from ..lm import PagePool, tiny_model
    from ..lm.models import load

    model, _ = load(arguments.model) if arguments.model else tiny_model()
    vocabulary = int(getattr(getattr(model, "args", None), "vocab_size", 256))
    requests = requests_of(arguments.requests, vocabulary, arguments.seed)
    backend = current_backend()
    with use_backend(arguments.backend or backend.name, arguments.family or (backend.family and backend.family.name)):
        records = {OWN: served(model, requests)}
        pool = PagePool(model, page=arguments.page, bits=arguments.kv_bits, group_size=arguments.kv_group_size)
        model.make_cache = pool.caches
        with patch():
            records[PAGED] = served(model, requests)
    same = sum(records[OWN].tokens[n] == records[PAGED].tokens[n] for n in range(len(requests)))
    _print(records, requests, same, pool)
    if arguments.json:
        results = {name: record.summary() | {"active": record.active} for name, record in records.items()}
        write(arguments.json, json.dumps({"requests": len(requests), "same": same, "runs": results}, indent=1))
    if arguments.plot:
        _draw(arguments.plot, records)
    return 0


def _print(records: dict[str, Record], requests: list[Request], same: int, pool) -> None:
    prompts = sum(len(one.prompt) for one in requests)
    generated = records[OWN].generated
    print(f"{len(requests)} requests, {prompts} tokens of prompts, {generated} generated; the same tokens in {same}")
    print(pool)
    for name, record in records.items():
        found = record.summary()
        print(
            f"{name + ':':17}{found['tokens_per_second']:8.1f} tokens/s, at most {found['most_bytes'] / 1e6:7.2f} MB, "
            f"{found['most_bytes_kept'] / 1e6:7.2f} MB of them kept; a step takes "
            f"{found['bytes_of_a_step'] / 1e6:.3f} MB for itself, all {found['bytes_that_came_and_went'] / 1e6:.1f} MB"
        )


def _draw(path: str, records: dict[str, Record]) -> None:
    figures = need("matplotlib.figure", "serve-bench")
    figure = figures.Figure(figsize=(8, 4), layout="constrained")
    axes = figure.subplots()
    for (name, record), colour in zip(records.items(), ("#c44e52", "#4c72b0")):
        kept = [size / 1e6 for size in record.active]
        most = [(size + more) / 1e6 for size, more in zip(record.active, record.transient)]
        axes.plot(kept, color=colour, label=name)
        axes.fill_between(range(len(kept)), kept, most, color=colour, alpha=0.3)
    axes.set(xlabel="step", ylabel="MB beyond the model", title="memory of a server: kept, and for the step itself")
    axes.legend()
    save(figure, "--plot", path)
