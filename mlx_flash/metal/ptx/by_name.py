"""Kernels handed to MLX by name, in place of 30 KB of code with every call.

MLX copies and hashes a kernel's code at each call, which takes 10 us of an H200's host. It looks for a kernel first in
its folder of compiled kernels, under the kernel's name and the hash of the code that it was given. So the code is
written there, under the hash of a few bytes, and calls hand over these bytes. MLX promises none of that: a kernel that
does nothing is tried first, once in a process, and if MLX does not find it, calls hand over the code itself.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from functools import cache
from pathlib import Path

import mlx.core as mx

from ...common.mlx_private import LONGEST_COMPILED_NAME, compiled_kernels, compiled_name

_NOTHING = "mlx_flash_nothing"
_PROBE = f".version 7.1\n.target sm_80\n.address_size 64\n.visible .entry {_NOTHING}(.param .u64 p0) {{ ret; }}\n"


def code_or_name(name: str, code: bytes) -> bytes:
    """The bytes that MLX gets as the code of the kernel with this name: a key by which it finds the code, else the
    code."""
    return _stored(name, code) or code if finds_stored_kernels() else code


def _stored(name: str, code: bytes) -> bytes | None:
    """Writes the code where MLX looks for it, if it is not there; the bytes that stand for it, or None where it cannot
    be written."""
    stands = hashlib.sha256(code).hexdigest()[:16].encode()
    return stands if store(compiled_name(name, stands), name, name, code) else None


def store(file: str, called: str, name: str, code: bytes) -> bool:
    """Whether MLX finds the code under a file's name without suffix: it is there, or could be written. `called`: the
    function that MLX asks the file for; `name`: what the code calls it."""
    if len(file) > LONGEST_COMPILED_NAME:
        return False
    place = compiled_kernels() / f"{file}.ptx"
    try:
        if place.read_bytes() != code:
            raise FileNotFoundError
    except OSError:
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            _write(place.with_suffix(".txt"), f"{called}\t{name}\n".encode())
            _write(place, code)  # last: MLX looks for this file
        except OSError:
            return False
    return True


def _write(path: Path, content: bytes) -> None:
    """Writes a file that other processes see whole or not at all."""
    with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
        written = Path(scratch) / "written"
        written.write_bytes(content)
        os.replace(written, path)


@cache
def finds_stored_kernels() -> bool:
    """Whether MLX finds a kernel by the bytes that stand for its code."""
    stands = _stored(_NOTHING, _PROBE.encode())
    if stands is None:
        return False
    try:
        mx.eval(
            mx.fast.precompiled_cuda_kernel(
                name=_NOTHING, compiled_source=stands, inputs=[], output_shapes=[(1,)], output_dtypes=[mx.float32],
                scalars=[], grid=(1, 1, 1), threadgroup=(1, 1, 1), stream=mx.gpu,
            )
        )  # fmt: skip
    except RuntimeError:  # MLX took the bytes for the code
        return False
    return True
