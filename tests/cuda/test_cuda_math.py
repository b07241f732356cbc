"""The float functions for NVIDIA GPUs, which have no mathematics library: the text, compiled for this machine, against
numpy in float64."""

import ctypes
import subprocess

import numpy as np
import pytest

from mlx_flash.metal.cpu.compiler import toolchain
from mlx_flash.metal.cpu.launch import load
from mlx_flash.metal.cpu.target import here
from mlx_flash.metal.ptx import ptx

pytestmark = pytest.mark.ptx

NAMES = (
    "expf", "exp2f", "logf", "log2f", "log10f", "log1pf", "tanhf", "sinhf", "coshf", "asinhf", "acoshf", "atanhf",
    "asinf", "acosf", "atanf", "sinf", "cosf", "tanf",
)  # fmt: skip
HARNESS = """
#define MSL_INLINE static inline __attribute__((always_inline))
#define MSL_PRIVATE
#define MSL_EX2(x) __builtin_exp2f(x)
#define bool _Bool
typedef unsigned uint;
typedef unsigned long ulong;
static inline uint bits_of(float x) { uint u; __builtin_memcpy(&u, &x, 4); return u; }
static inline float float_of(uint u) { float x; __builtin_memcpy(&x, &u, 4); return x; }
#define MSL_BITS(x) bits_of(x)
#define MSL_FLOAT(x) float_of(x)
#include <target/math.h>
#define LOOP(CALL) { for (int i = 0; i < n; i++) y[i] = CALL; }
#define EACH(NAME) void each_##NAME(const float* x, float* y, int n) LOOP(NAME(x[i]))
#define PAIR(NAME) void each_##NAME(const float* x, const float* z, float* y, int n) LOOP(NAME(x[i], z[i]))
PAIR(powf) PAIR(fmodf) PAIR(atan2f) PAIR(nextafterf)
void each_ldexpf(const float* x, const int* k, float* y, int n) LOOP(ldexpf(x[i], k[i]))
void each_frexpf(const float* x, float* y, int* e, int n) LOOP(frexpf(x[i], e + i))
void each_modff(const float* x, float* y, float* whole, int n) LOOP(modff(x[i], whole + i))
"""
DRAW = np.random.default_rng(7)
ANY = np.concatenate([DRAW.standard_normal(9000) * 10.0**e for e in (-30, -8, -3, -1, 0, 1, 2, 5, 20)])
SPECIAL = [0, -0.0, 1, -1, 0.5, -0.5, 2, -3, np.inf, -np.inf, np.nan, 3e38, 1e-38, 1e-41, 50000, 1e9]
X = np.concatenate([ANY, SPECIAL]).astype(np.float32)
PAIRS = np.stack(np.meshgrid(*[np.array(SPECIAL, np.float32)] * 2), -1).reshape(-1, 2)
MOST_ULPS = 4  # what the Metal specification allows
NUMPY = {
    "expf": np.exp, "exp2f": np.exp2, "logf": np.log, "log2f": np.log2, "log10f": np.log10, "log1pf": np.log1p,
    "tanhf": np.tanh, "sinhf": np.sinh, "coshf": np.cosh, "asinhf": np.arcsinh, "acoshf": np.arccosh,
    "atanhf": np.arctanh, "asinf": np.arcsin, "acosf": np.arccos, "atanf": np.arctan, "sinf": np.sin, "cosf": np.cos,
    "tanf": np.tan, "powf": np.power, "atan2f": np.arctan2, "fmodf": np.fmod,
}  # fmt: skip


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    folder = tmp_path_factory.mktemp("math")
    source = folder / "math.c"
    source.write_text(HARNESS + "".join(f"EACH({name})\n" for name in NAMES))
    compiler, linker, _ = toolchain()
    flags = ["-x", "c", "-std=gnu17", "-O2", "-fPIC", "-fno-builtin", "-w", "-I", str(ptx.INCLUDE)]
    subprocess.run([*compiler, *flags, "-c", source, "-o", folder / "math.o"], check=True)
    assert here().link(linker, [folder / "math.o"], folder / "math.so").returncode == 0
    return load(folder / "math.so")


def run(library, name, *arrays, outputs=(np.float32,)):
    arrays = [np.ascontiguousarray(array) for array in arrays]
    made = [np.empty(arrays[0].shape, dtype) for dtype in outputs]
    pointers = [ctypes.c_void_p(array.ctypes.data) for array in (*arrays, *made)]
    getattr(library, f"each_{name}")(*pointers, arrays[0].size)
    return made if len(made) > 1 else made[0]


def check(got, want):
    """NaN and infinity where they belong; normal numbers within MOST_ULPS of float64's."""
    with np.errstate(over="ignore"):
        rounded = want.astype(np.float32)
    assert np.array_equal(np.isnan(got), np.isnan(rounded))
    infinite = np.isinf(rounded) | np.isinf(got)
    assert np.array_equal(got[infinite], rounded[infinite])
    normal = np.isfinite(rounded) & (np.abs(rounded) >= 2.0**-125)
    errors = np.abs(got[normal] - want[normal]) / np.spacing(np.abs(rounded[normal]))
    assert errors.max(initial=0) <= MOST_ULPS


def draws():
    """Pairs whose power is a number."""
    return np.exp(DRAW.standard_normal(9000) * 3), DRAW.standard_normal(9000) * 8


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("name", NAMES)
def test_of_one_number(library, name):
    check(run(library, name, X), NUMPY[name](X.astype(np.float64)))


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("name", ("powf", "atan2f", "fmodf"))
def test_of_two_numbers(library, name):
    for a, b in (draws(), draws()[::-1], PAIRS.T):
        a, b = a.astype(np.float32), b.astype(np.float32)
        check(run(library, name, a, b), NUMPY[name](a.astype(np.float64), b.astype(np.float64)))


def test_exact_functions(library):
    exponents = DRAW.integers(-160, 160, X.size).astype(np.int32)
    number = np.isfinite(X)
    with np.errstate(over="ignore"):
        assert np.array_equal(run(library, "ldexpf", X, exponents), np.ldexp(X, exponents), equal_nan=True)
    for got, want in zip(run(library, "frexpf", X, outputs=(np.float32, np.int32)), np.frexp(X)):
        assert np.array_equal(got[number], want[number])
    for got, want in zip(run(library, "modff", X, outputs=(np.float32, np.float32)), np.modf(X)):
        assert np.array_equal(got, want, equal_nan=True)
    assert np.array_equal(run(library, "nextafterf", *PAIRS.T), np.nextafter(*PAIRS.T), equal_nan=True)
