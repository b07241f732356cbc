"""Compiles every kernel of a Metal library on the simulator, as a check of both, and lists what was refused and why.

    python bench/metal_library.py path/to/ggml-metal.metal --define GGML_METAL_HAS_BF16 --include path/to/headers

Libraries worth the check: llama.cpp's ggml-metal.metal (with ggml-common.h and ggml-metal-impl.h beside it),
vllm-metal's kernels_v2, and the rasterisers of Metal-GS and gsplat-mlx. None of their text is kept here.
"""

import argparse
import sys
import time
import warnings
from pathlib import Path

from mlx_flash.simulator import CompileError, MetalLibrary


def arguments(given=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("paths", nargs="+", type=Path, help="Metal sources; each is a library of its own")
    parser.add_argument("--include", action="append", default=[], type=Path, help="folder of further headers")
    parser.add_argument("--define", action="append", default=[], help="NAME or NAME=VALUE before the text")
    parser.add_argument("--language", default="3.1", help="version of the Metal Shading Language")
    parser.add_argument("--together", action="store_true", help="join all sources into one library, in order")
    return parser.parse_args(given)


def refused(library: MetalLibrary) -> dict[str, str]:
    """Kernels that do not compile, each with the first line of its error. A sound library is compiled in one go."""
    try:
        library.check()
        return {}
    except CompileError as whole:
        found = {}
        for name in library.kernel_names:
            try:
                library.check([name])
            except CompileError as error:
                found[name] = str(error).splitlines()[1]
        return found or {"the text": str(whole).splitlines()[1]}


def report(name: str, text: str, folders: list[Path], language: str) -> bool:
    """Prints one line of a library, and one of each kernel that is refused; says whether all compiled."""
    start = time.perf_counter()
    try:
        library = MetalLibrary(text, folders, language)
    except CompileError as error:
        print(f"{name}: refused as a whole: {error}")
        return False
    wrong = refused(library)
    count, seconds = len(library.kernel_names), time.perf_counter() - start
    print(f"{name}: {count} kernels, {count - len(wrong)} compiled, {len(wrong)} refused, {seconds:.1f} s")
    for kernel, reason in wrong.items():
        print(f"  {kernel}: {reason}")
    return not wrong


def main(given=None) -> int:
    options = arguments(given)
    warnings.simplefilter("ignore", UserWarning)  # comments beyond ASCII
    head = "".join(f"#define {define.replace('=', ' ', 1)}\n" for define in options.define)
    texts = {path: path.read_text(encoding="utf-8") for path in options.paths}
    folders = [*dict.fromkeys(path.parent for path in options.paths), *options.include]
    if options.together:
        return not report("all", head + "\n".join(texts.values()), folders, options.language)
    results = [report(path.name, head + text, folders, options.language) for path, text in texts.items()]
    return not all(results)


if __name__ == "__main__":
    sys.exit(main())
