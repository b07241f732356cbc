"""`python tests/support/metal_conformance` compares MLX's kernels, run on the simulator, with numpy."""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from metal_conformance.headers import Unavailable
from metal_conformance.suite import table
from mlx_flash.simulator import ToolchainError


def main(arguments: list[str] | None = None) -> int:
    """Prints a table of what compiles and what computes the right result; returns 1 if a case failed or could not be
    fetched."""
    parser = argparse.ArgumentParser(prog="python tests/support/metal_conformance", description=__doc__)
    parser.add_argument("--mode", choices=("check", "fast"), default="fast", help="check every access or none")
    parser.add_argument("--verbose", action="store_true", help="name every case")
    options = parser.parse_args(arguments)
    try:
        text, failures = table(options.mode == "check", print if options.verbose else lambda line: None)
    except (ToolchainError, Unavailable) as error:
        print(error, file=sys.stderr)
        return 1
    print(text)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
