"""`python -m mlx_flash.simulator run FILE.py ...` runs a script with its Metal kernels on the simulator."""

import argparse
import runpy
import sys

from . import CompileError, SimulatorError, ToolchainError, mode, profile, replace_metal_kernel, schedule
from .cpu.settings import MODES, SCHEDULES, current_mode


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(prog="python -m mlx_flash.simulator", description=__doc__)
    commands = top.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="run a script on the simulator")
    run.add_argument("--mode", choices=MODES, help="check every access (the default) or none")
    run.add_argument("--schedule", choices=SCHEDULES, default="forward", help="the order of lanes and threadgroups")
    run.add_argument("--seed", type=int, default=0, help="of the random schedule")
    run.add_argument("--profile", action="store_true", help="print what every launch did")
    run.add_argument("file", help="the script; mx.fast.metal_kernel makes simulated kernels in it")
    run.add_argument("arguments", nargs=argparse.REMAINDER, help="its own arguments")
    return top


def main(arguments: list[str] | None = None) -> int:
    """Runs a command. Returns 1 if a kernel was reported or did not compile, else 0."""
    options = parser().parse_args(arguments)
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
