"""The driver's assembler is called as its C interface wants it: a library with the same functions tells."""

import ctypes
import subprocess

import pytest

from mlx_flash.cuda import driver, ptx
from mlx_flash.simulator.compiler import toolchain

# Keeps what it is given; RESULT is what linking returns.
DRIVER = """
typedef unsigned long size_t;
static char* log_at; static size_t log_bytes; static int depth, states; static char made[64]; static size_t made_bytes;
int RESULT = 0;
int cuDriverGetVersion(int* version) { *version = 12090; return 0; }
int cuInit(unsigned flags) { return flags != 0; }
int cuDeviceGet(int* device, int ordinal) { *device = 7; return ordinal; }
int cuDevicePrimaryCtxRetain(void** context, int device) { *context = (void*)0x123456789abcul; return device != 7; }
int cuCtxPushCurrent_v2(void* context) { depth++; return context != (void*)0x123456789abcul; }
int cuCtxPopCurrent_v2(void** context) { depth--; *context = 0; return 0; }
int cuLinkCreate_v2(unsigned n, int* options, void** values, void** state) {
  for (unsigned i = 0; i < n; i++) {
    if (options[i] == 5) log_at = values[i];
    if (options[i] == 6) log_bytes = (size_t)values[i];
  }
  states++;
  *state = (void*)0x23456789abcdul;
  return 0;
}
int cuLinkAddData_v2(void* state, int type, const char* data, size_t size, const char* name, unsigned n) {
  if (state != (void*)0x23456789abcdul || type != 1 || n || data[size - 1] || depth != 1 || log_bytes < 100) return 1;
  const char* words = "ptxas error : ";
  int at = 0;
  for (; *words; words++) log_at[at++] = *words;
  for (const char* c = name; *c; c++) log_at[at++] = *c;
  log_at[at] = 0;
  for (size_t i = 0; i < size - 1; i++) made[i] = data[size - 2 - i];
  made_bytes = size - 1;
  return 0;
}
int cuLinkComplete(void* state, void** cubin, size_t* size) { *cubin = made; *size = made_bytes; return RESULT; }
int cuLinkDestroy(void* state) { states--; return 0; }
int left_open(void) { return depth + states; }
"""


@pytest.fixture
def fake(tmp_path, monkeypatch):
    source = tmp_path / "driver.c"
    source.write_text(DRIVER)
    compiler, linker, _ = toolchain()
    subprocess.run([*compiler, "-x", "c", "-O1", "-fPIC", "-w", "-c", source, "-o", tmp_path / "driver.o"], check=True)
    subprocess.run([*linker, "-shared", tmp_path / "driver.o", "-o", tmp_path / "driver.so"], check=True)
    library = ctypes.CDLL(str(tmp_path / "driver.so"))
    monkeypatch.setattr(driver, "library", lambda: library)
    return library


def result(fake) -> ctypes.c_int:
    return ctypes.c_int.in_dll(fake, "RESULT")


def test_what_it_makes_is_returned(fake):
    assert driver.assemble(b"some code", "probe") == b"some code"[::-1]
    assert fake.left_open() == 0 and driver.version() == (12, 9)


@pytest.mark.parametrize("code, words", [(218, "no valid PTX"), (209, "another GPU"), (222, "newer driver")])
def test_a_refusal_shows_the_assembler_and_the_kernel(fake, code, words):
    result(fake).value = code
    with pytest.raises(driver.AssemblerError, match=rf"does not assemble probe: .*{words}\nptxas error : probe"):
        driver.assemble(b"some code", "probe")
    assert fake.left_open() == 0


def test_any_other_trouble_leaves_it_to_mlx(fake):
    result(fake).value = 999
    assert driver.assemble(b"some code", "probe") is None


def test_no_driver(monkeypatch):
    monkeypatch.setattr(driver, "library", lambda: None)
    assert driver.assemble(b"some code", "probe") is None and driver.version() is None


def test_a_new_kernel_is_shown_to_the_driver(fake, tmp_path, monkeypatch):
    """One that it refuses is not kept; one that is kept is not shown again."""
    monkeypatch.setenv("MLX_FLASH_CACHE", str(tmp_path))
    text = "#include <metal_stdlib>\n[[kernel]] void probe(device float* x [[buffer(0)]]) { x[0] = 1; }"
    variant = ptx.Variant((32, 1, 1))
    result(fake).value = 218
    with pytest.raises(driver.AssemblerError, match="probe"):
        ptx.build(text, "probe", variant, "sm_90")
    assert not list(tmp_path.rglob("*.ptx"))
    result(fake).value = 0
    assert b".entry probe" in ptx.build(text, "probe", variant, "sm_90").code
    result(fake).value = 218
    assert b".entry probe" in ptx.build(text, "probe", variant, "sm_90").code
