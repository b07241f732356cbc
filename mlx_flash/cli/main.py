"""The command line: parses arguments and calls one function for each command.

Bad input gets one sentence and exit status 2, never a traceback.
"""

from __future__ import annotations

import argparse
import os
import sys

from .. import __version__
from ..common.errors import CommandError, need
from ..metal import ToolchainError
from .console import kernel_backend

DTYPES = ("float32", "float16", "bfloat16")
BACKENDS = ("metal", "cuda", "simulator", "reference")
FAMILIES = ("apple7", "apple8", "apple9", "apple10", "sm80", "sm90")
KV_BITS, KV_GROUPS = (2, 3, 4, 5, 6, 8), (32, 64, 128)  # the formats of mx.quantize
PROMPT = "Attention is a weighted mean of values: each query weighs them by how well their keys fit."
KERNELS = (
    "forward", "decode", "combine", "delta", "backward_query", "backward_query_delta", "backward_key_value",
    "backward_key", "backward_value",
)  # fmt: skip


class Parser(argparse.ArgumentParser):
    """A parser with errors of one sentence, without the usage block."""

    def error(self, message):
        self.exit(2, f"{self.prog}: {message}. See {self.prog} --help\n")


def whole_number(text: str, least: int = 1) -> int:
    try:
        number = int(text)
    except ValueError:
        number = least - 1
    if number < least:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least {least}, got {text!r}")
    return number


def from_zero(text: str) -> int:
    return whole_number(text, 0)


def parser() -> argparse.ArgumentParser:
    """The parser of every command."""
    main_parser = Parser(prog="python -m mlx_flash", description="FlashAttention for MLX as Metal kernels.")
    main_parser.add_argument("--version", action="version", version=f"mlx_flash {__version__}")
    commands = main_parser.add_subparsers(dest="command", required=True, metavar="command")

    def added(name: str, words: str, *parents: argparse.ArgumentParser) -> argparse.ArgumentParser:
        return commands.add_parser(name, parents=parents, help=words, description=f"{words[0].upper()}{words[1:]}.")

    backend = Parser(add_help=False)
    backend.add_argument("--backend", choices=BACKENDS, help="where attention runs (default: this machine's GPU)")
    backend.add_argument("--family", choices=FAMILIES, help="GPU whose kernels run: M1, M2, M3 and M4, M5, NVIDIA")

    demo = added("demo", "train a small language model, and again with MLX's attention, and compare", backend)
    demo.add_argument("--steps", type=whole_number, default=40, help="training steps (default: 40)")
    demo.add_argument("--dtype", choices=DTYPES, default="float32", help="type of q, k and v (default: float32)")
    demo.add_argument("--text", metavar="FILE", help="text to learn (default: Python's own documentation)")
    demo.add_argument("--out", default=".", metavar="DIR|PNG", help="where the plot goes (default: this folder)")

    _language_model(added("lm", "run mlx-lm's generation with and without mlx_flash, and compare", backend))

    gallery = added("gallery", "draw the ready-made scores and masks")
    gallery.add_argument("--out", default="gallery", metavar="DIR", help="folder of the pictures (default: gallery)")

    shared = _numbers(backend)
    _sharing(added("explain", "tell which kernels a call would run, and why", shared))
    source = added("source", "print the text of a kernel, as MLX or an NVIDIA driver would compile it", shared)
    source.add_argument("--kernel", choices=KERNELS, default="forward", help="which kernel (default: forward)")
    source.add_argument("--minified", action="store_true", help="exactly as MLX gets it: no comments, short names")

    check = added("check", "compare results and gradients with a float64 computation", backend)
    check.add_argument("--quick", action="store_true", help="fewer head dimensions")
    check.add_argument("--report", action="store_true", help="instead: describe this machine, to paste into a report")
    check.add_argument("--fuzz", type=whole_number, metavar="N", help="instead: N random problems over every option")
    check.add_argument("--seed", type=from_zero, default=0, help="number of the first random problem (default: 0)")
    _tuner(added("tune", "find the fastest table rows on this GPU by timing them"))
    bench = added("bench", "time attention on this GPU beside MLX's own and torch's")
    bench.add_argument("--only", default="", metavar="REGEX", help="cases with matching names, as 'D=128 N=16384'")
    bench.add_argument("--seconds", type=float, default=0.4, help="for each case and provider (default: 0.4)")
    bench.add_argument("--out", metavar="JSON", help="write the results to a file")
    bench.add_argument("--plot", metavar="PNG", help="draw the cases of the most common length")
    _serving(added("serve-bench", "serve random requests with mlx-lm's caches and with pages, and compare", backend))
    return main_parser


def _sharing(explain: argparse.ArgumentParser) -> None:
    explain.add_argument(
        "--group-size", type=whole_number, metavar="P", help="predict the gain of sharing the sequence on P machines"
    )
    explain.add_argument("--flops", type=float, help="FLOP/s of one of these machines (default: an M4 Max's, 15e12)")
    explain.add_argument(
        "--link", default="thunderbolt5", help="link between them, or its bytes per second (default: thunderbolt5)"
    )


def _serving(serving: argparse.ArgumentParser) -> None:
    serving.add_argument("--model", metavar="FOLDER", help="a model mlx-lm can load (default: a tiny random Llama)")
    serving.add_argument("--requests", type=whole_number, default=24, metavar="N", help="requests (default: 24)")
    serving.add_argument("--seed", type=from_zero, default=0, help="seed of prompts and arrivals (default: 0)")
    serving.add_argument("--page", type=whole_number, default=64, help="tokens of a page (default: 64)")
    serving.add_argument("--kv-bits", type=int, choices=KV_BITS, help="quantize pages to this many bits (default: not)")
    serving.add_argument("--kv-group-size", type=int, choices=KV_GROUPS, default=64, help="for --kv-bits (default: 64)")
    serving.add_argument("--json", metavar="FILE", help="write the results to a file")
    serving.add_argument("--plot", metavar="PNG", help="draw the memory of both runs over time")


def _tuner(tune: argparse.ArgumentParser) -> None:
    tune.add_argument("--head-dim", type=whole_number, nargs="+", default=[64, 128], help="default: 64 128")
    tune.add_argument(
        "--dtype", choices=DTYPES, nargs="+", default=["float16", "bfloat16"], help="default: both halves"
    )
    tune.add_argument("--rows", type=whole_number, default=8, help="rows to time for a kernel, at most (default: 8)")
    tune.add_argument("--seconds", type=whole_number, default=300, help="time limit (default: 300); rerun to go on")
    tune.add_argument("--again", action="store_true", help="repeat measurements that exist")
    tune.add_argument("--show", action="store_true", help="instead: print the gains found on this machine")
    tune.add_argument("--family", choices=FAMILIES, help="instead: rank the rows of a GPU by the cost model")


def _language_model(lm: argparse.ArgumentParser) -> None:
    lm.add_argument("--model", metavar="FOLDER", help="a model mlx-lm can load (default: a tiny random Llama)")
    lm.add_argument("--prompt", default=PROMPT, metavar="TEXT", help="what to continue (default: a sentence)")
    lm.add_argument("--max-tokens", type=whole_number, default=32, metavar="N", help="tokens to write (default: 32)")
    lm.add_argument("--shards", type=whole_number, metavar="N", help="instead: train it, each sequence on N processes")
    lm.add_argument("--steps", type=whole_number, default=5, help="training steps with --shards (default: 5)")
    lm.add_argument("--length", type=whole_number, default=512, help="tokens per sequence with --shards (default: 512)")
    lm.add_argument("--kv-bits", type=int, choices=KV_BITS, help="quantize the KV cache (default: no)")
    lm.add_argument("--kv-group-size", type=int, choices=KV_GROUPS, default=64, help="for --kv-bits (default: 64)")


def _numbers(backend: argparse.ArgumentParser) -> argparse.ArgumentParser:
    numbers = Parser(add_help=False, parents=[backend])
    numbers.add_argument("--head-dim", type=whole_number, required=True, help="columns of q and k")
    numbers.add_argument("--value-dim", type=whole_number, help="columns of v (default: head-dim)")
    numbers.add_argument("--dtype", choices=DTYPES, default="float16", help="type of q, k and v (default: float16)")
    numbers.add_argument("--heads", type=whole_number, default=8, help="query heads (default: 8)")
    numbers.add_argument("--key-heads", type=whole_number, help="key and value heads (default: heads)")
    numbers.add_argument("--length", type=whole_number, default=1024, help="queries (default: 1024)")
    numbers.add_argument("--key-length", type=whole_number, help="keys (default: length)")
    numbers.add_argument("--batch", type=whole_number, default=1, help="batch entries (default: 1)")
    numbers.add_argument("--causal", action="store_true", help="queries see no later keys")
    return numbers


def _explanation(arguments, backend):
    from ..explanations.explain import explain

    names = ("head_dim", "value_dim", "heads", "key_heads", "length", "key_length", "batch", "dtype")
    numbers = {name: getattr(arguments, name) for name in names}
    if getattr(arguments, "group_size", None):
        numbers |= {"group_size": arguments.group_size, "link": _number_or_name(arguments.link)}
        numbers |= {"flops": arguments.flops} if arguments.flops else {}
    return explain(causal=arguments.causal, backend=backend, family=arguments.family, **numbers)


def _number_or_name(text: str) -> str | float:
    try:
        return float(text)
    except ValueError:
        return text


def run_explain(arguments) -> int:
    """Prints the explanation: a table where rich is installed, plain text elsewhere."""
    explanation = _explanation(arguments, arguments.backend)
    try:
        console = need("rich.console", "explain").Console()
    except CommandError:
        print(explanation)
        return 0
    from ..explanations.tables import explanation_tables

    for table in explanation_tables(explanation):
        console.print(table)
    return 0


def run_source(arguments) -> int:
    """Prints the Metal text of one kernel, or its PTX for an NVIDIA GPU."""
    from ..explanations.explain import inner_problem
    from ..explanations.metal_text import assembler_text, generated_text
    from ..kernels.plan import key_value_kinds, plan, plan_of
    from ..problem.kinds import KINDS

    explanation = _explanation(arguments, arguments.backend or kernel_backend())
    if explanation.family is None:
        raise CommandError("the reference backend has no Metal text: leave out --backend or name another")
    kind = KINDS[arguments.kernel]
    problem = inner_problem(explanation.problem)
    own = key_value_kinds(problem.signature, explanation.family)
    if kind.over_keys and kind not in own:
        names = " and ".join(one.name for one in own)
        raise CommandError(f"--kernel {kind.name}: of this call dK and dV are made by {names}. Name that")
    text = assembler_text if explanation.backend == "cuda" else generated_text
    chosen = plan_of(kind, problem, explanation.family)
    if not arguments.minified:
        chosen = plan(kind, problem.signature, explanation.family, chosen.rows, readable=True)
    print(text(chosen, problem), end="")
    return 0


def run_demo(arguments) -> int:
    from .demo import demo

    return demo(arguments)


def run_lm(arguments) -> int:
    if arguments.shards:
        if arguments.shards < 2:
            raise CommandError("--shards: expected at least 2 processes, got 1. Leave it out for one")
        if arguments.model or arguments.kv_bits:
            raise CommandError("--shards trains the tiny model: leave out --model and --kv-bits")
        need("mlx_lm", "lm", "lm")
        from .shared_training import lm_shards

        return lm_shards(arguments)
    from .language_model import lm

    return lm(arguments)


def run_check(arguments) -> int:
    if arguments.report:
        if arguments.backend or arguments.family or arguments.fuzz or arguments.quick:
            raise CommandError("--report describes this machine as it is: leave out the other options")
        from .report.command import report

        return report()
    if arguments.fuzz:
        from .accuracy.fuzz import run

        return run(arguments.backend, arguments.family, arguments.fuzz, arguments.seed)
    from .accuracy.check import check

    return check(arguments.backend, arguments.family, quick=arguments.quick)


def run_gallery(arguments) -> int:
    from .gallery import draw

    return draw(arguments.out)


def run_tune(arguments) -> int:
    from .tune import command

    if arguments.show:
        return command.show()
    if arguments.family:
        return command.rank(arguments.family, arguments.dtype, arguments.head_dim, arguments.rows)
    return command.tune(arguments.dtype, arguments.head_dim, arguments.rows, arguments.seconds, arguments.again)


def run_bench(arguments) -> int:
    from .benchmark import bench

    return bench(arguments.only, arguments.seconds, arguments.out, arguments.plot)


def run_serve_bench(arguments) -> int:
    need("mlx_lm", "serve-bench", "lm")
    from .serve_bench import serve_bench

    return serve_bench(arguments)


def main(argv: list[str] | None = None) -> int:
    """Runs a command and returns its exit status: 0 well, 1 a comparison failed, 2 bad input."""
    made = parser()
    arguments, unknown = made.parse_known_args(argv)
    if unknown:
        made.prog += f" {arguments.command}"  # whose help names the right ones
        made.error(f"unrecognized arguments: {' '.join(unknown)}")
    commands = {
        "demo": run_demo, "lm": run_lm, "explain": run_explain, "source": run_source, "check": run_check,
        "tune": run_tune, "bench": run_bench, "gallery": run_gallery, "serve-bench": run_serve_bench,
    }  # fmt: skip
    try:
        status = commands[arguments.command](arguments)
        sys.stdout.flush()
        return status
    except (CommandError, ToolchainError, ValueError) as error:
        if isinstance(error, ValueError) and not str(error).startswith("[mlx_flash"):
            raise  # a defect, not bad input
        print(f"python -m mlx_flash {arguments.command}: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 0
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
