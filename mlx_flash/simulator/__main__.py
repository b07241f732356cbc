"""`python -m mlx_flash.simulator run FILE.py ...` runs a script whose Metal kernels run here."""

import argparse
import runpy
import sys

from . import CompileError, SimulatorError, ToolchainError, mode, profile, replace_metal_kernel, schedule
from .settings import MODES, SCHEDULES, current_mode


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(prog="python -m mlx_flash.simulator", description=__doc__)
    commands = top.add_subparsers(dest="command", required=True)
    conformance = commands.add_parser("conformance", help="run MLX's own kernels, from its macOS wheel, against numpy")
    conformance.add_argument("--mode", choices=MODES, default="fast", help="check every access or none (the default)")
    conformance.add_argument("--verbose", action="store_true", help="name every case")
    run = commands.add_parser("run", help="run a script on the simulator")
    run.add_argument("--mode", choices=MODES, help="check every access (the default) or none")
    run.add_argument("--schedule", choices=SCHEDULES, default="forward", help="the order of lanes and threadgroups")
    run.add_argument("--seed", type=int, default=0, help="of the random schedule")
    run.add_argument("--profile", action="store_true", help="print what every launch did")
    run.add_argument("file", help="the script; mx.fast.metal_kernel makes simulated kernels in it")
    run.add_argument("arguments", nargs=argparse.REMAINDER, help="its own arguments")
    return top


def conform(options) -> int:
    """Prints the table of what compiles and what runs right."""
    from .conformance.headers import Unavailable
    from .conformance.suite import table

    try:
        text, failures = table(options.mode == "check", print if options.verbose else lambda line: None)
    except (ToolchainError, Unavailable) as error:
        print(error, file=sys.stderr)
        return 1
    print(text)
    return 1 if failures else 0


def main(arguments: list[str] | None = None) -> int:
    """Runs a command; 1 if a kernel was reported, did not compile or did not conform."""
    options = parser().parse_args(arguments)
    if options.command == "conformance":
        return conform(options)
    saved = sys.argv
    sys.argv = [options.file, *options.arguments]
    chosen = mode(options.mode or current_mode())
    try:
        with replace_metal_kernel(), chosen, schedule(options.schedule, options.seed), profile() as counted:
            runpy.run_path(options.file, run_name="__main__")
    except (CompileError, SimulatorError, ToolchainError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    finally:
        sys.argv = saved
        if options.profile:
            print(counted)
    return 0


if __name__ == "__main__":
    sys.exit(main())
