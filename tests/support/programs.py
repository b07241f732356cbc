"""Compiles the small programs of the language tests without running them."""

import re

from language_programs import BODY

from mlx_flash.metal.cpu import compiler
from mlx_flash.metal.frontend.language import prefix
from mlx_flash.metal.frontend.translate import translate


def compiled(program: str, version: str = "3.1"):
    """Raises CompileError if a program is not valid Metal of this version."""
    text = program if re.search(r"\bkernel\b", program) else BODY + program + "\n}\n"
    translation = translate(text, float(version))
    compiler.check(prefix(version) + translation.text, translation.entry(), "mlx.h")
