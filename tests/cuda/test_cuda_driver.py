"""The driver is called as its C interface wants it: a library with the same functions tells."""

import ctypes
import subprocess
import sys

import lz4.block
import pytest

from mlx_flash.metal.cpu.compiler import toolchain
from mlx_flash.metal.cpu.launch import load
from mlx_flash.metal.cpu.target import here
from mlx_flash.metal.ptx import driver, fatbin, ptx

pytestmark = pytest.mark.ptx

# RESULT is what loading PTX returns, PACKED what loading a fatbin does.
DRIVER = """
typedef unsigned long size_t;
static int depth, modules;
int RESULT = 0, PACKED = 0;
int cuDriverGetVersion(int* version) { *version = 12090; return 0; }
int cuInit(unsigned flags) { return flags != 0; }
int cuDeviceGet(int* device, int ordinal) { *device = 7; return ordinal; }
int cuDevicePrimaryCtxRetain(void** context, int device) { *context = (void*)0x123456789abcul; return device != 7; }
int cuCtxPushCurrent_v2(void* context) { depth++; return context != (void*)0x123456789abcul; }
int cuCtxPopCurrent_v2(void** context) { depth--; *context = 0; return 0; }
int cuModuleLoadDataEx(void** module, const char* image, unsigned n, int* options, void** values) {
  char* log_at = 0; size_t log_bytes = 0;
  for (unsigned i = 0; i < n; i++) {
    if (options[i] == 5) log_at = values[i];
    if (options[i] == 6) log_bytes = (size_t)values[i];
  }
  if (depth != 1 || log_bytes < 100) return 1;
  const char* words = "ptxas error : ";
  int at = 0;
  for (; *words; words++) log_at[at++] = *words;
  for (const char* c = image; *c && at < 60; c++) log_at[at++] = *c;
  log_at[at] = 0;
  if ((unsigned char)image[0] == 0x50) return PACKED ? PACKED : (modules++, 0);
  if (!RESULT) modules++;
  return RESULT;
}
int cuModuleUnload(void* module) { modules--; return 0; }
int left_open(void) { return depth + modules; }
"""


@pytest.fixture
def fake(tmp_path, monkeypatch):
    source = tmp_path / "driver.c"
    source.write_text(DRIVER)
    compiler, linker, _ = toolchain()
    subprocess.run([*compiler, "-x", "c", "-O1", "-fPIC", "-w", "-c", source, "-o", tmp_path / "driver.o"], check=True)
    assert here().link(linker, [tmp_path / "driver.o"], tmp_path / "driver.so").returncode == 0
    library = load(tmp_path / "driver.so")
    monkeypatch.setattr(driver, "library", lambda: library)
    return library


def answer(fake, ptx: int = 0, packed: int = 0) -> None:
    ctypes.c_int.in_dll(fake, "RESULT").value = ptx
    ctypes.c_int.in_dll(fake, "PACKED").value = packed


def test_loaded_code_is_taken(fake):
    assert driver.takes(b"some code", "probe") is True
    assert fake.left_open() == 0 and driver.version() == (12, 9)


@pytest.mark.parametrize("code, words", [(218, "not valid PTX"), (209, "another GPU"), (222, "newer driver")])
def test_a_refusal_shows_the_assembler_and_the_kernel(fake, code, words):
    answer(fake, code)
    with pytest.raises(driver.AssemblerError, match=rf"does not assemble probe: .*{words}\nptxas error : some code"):
        driver.takes(b"some code", "probe")
    assert fake.left_open() == 0


def test_other_answers(fake, monkeypatch):
    answer(fake, 200)
    assert driver.takes(b"some code", "probe") is False
    answer(fake, 999)
    assert driver.takes(b"some code", "probe") is None
    assert fake.left_open() == 0
    monkeypatch.setattr(driver, "library", lambda: None)
    assert driver.takes(b"some code", "probe") is None and driver.version() is None


TEXT = "#include <metal_stdlib>\n[[kernel]] void probe(device float* x [[buffer(0)]]) { x[0] = 1; }"


def test_a_new_kernel_is_shown_to_the_driver(fake, tmp_path, monkeypatch):
    """One that it refuses is not kept; one that is kept is not shown again."""
    monkeypatch.setenv("MLX_FLASH_CACHE", str(tmp_path))
    variant = ptx.Variant((32, 1, 1))
    answer(fake, 218, 218)
    with pytest.raises(driver.AssemblerError, match="probe"):
        ptx.build(TEXT, "probe", variant, "sm_90")
    assert not list(tmp_path.rglob("*.ptx")) and not list(tmp_path.rglob("*.fatbin"))
    answer(fake, 0)
    code = ptx.build(TEXT, "probe", variant, "sm_90").code
    answer(fake, 218, 218)
    assert ptx.build(TEXT, "probe", variant, "sm_90").code == code == next(tmp_path.rglob("*.fatbin")).read_bytes()


@pytest.mark.parametrize("refusal", [200, 209, 218, 999])
def test_ptx_where_the_driver_takes_no_fatbin(fake, tmp_path, monkeypatch, refusal):
    monkeypatch.setenv("MLX_FLASH_CACHE", str(tmp_path))
    answer(fake, 0, refusal)
    for _ in range(2):
        assert b".entry probe" in ptx.build(TEXT, "probe", ptx.Variant((32, 1, 1)), "sm_90").code
    assert not list(tmp_path.rglob("*.fatbin"))


def test_a_cache_that_cannot_be_written(fake, tmp_path, monkeypatch):
    """Its kernels run, compressed again by each process."""
    monkeypatch.setenv("MLX_FLASH_CACHE", str(tmp_path))
    variant = ptx.Variant((32, 1, 1))
    assert b".entry probe" in ptx.build(TEXT, "probe", variant).code

    def refuse(**_):
        raise PermissionError

    monkeypatch.setattr(ptx.tempfile, "TemporaryDirectory", refuse)
    assert ptx.build(TEXT, "probe", variant, "sm_90").code.startswith(bytes.fromhex("50ed55ba"))


@pytest.mark.parametrize("target, flags", [("sm_80", 0x2011), ("sm_90a", 0x102011)])
def test_a_fatbin_holds_the_ptx(target, flags):
    code = f"//{{}}\n.version 8.3\n.target {target}\n.address_size 64\n".encode() + b"mov.u32 %r1, %r2;\n" * 500
    image = fatbin.compressed(code)
    assert image[:8] == bytes.fromhex("50ed55ba01001000") and len(image) == 16 + int.from_bytes(image[8:16], "little")

    def word(at: int, size: int = 4) -> int:
        return int.from_bytes(image[16 + at : 16 + at + size], "little")

    assert (word(0), word(4), word(20)) == (0x01010001, 80, 64)
    assert (word(24, 2), word(26, 2), word(28), word(40, 8)) == (3, 8, int(target[3:5]), flags)
    payload = image[96 : 96 + word(16)]
    assert lz4.block.decompress(payload, uncompressed_size=word(56, 8)) == code + b"\0"
    assert len(image) == 96 + word(8, 8) and 0 <= word(8, 8) - word(16) < 8 and len(image) < len(code) / 3


def test_without_lz4_there_is_no_fatbin(monkeypatch):
    monkeypatch.setitem(sys.modules, "lz4.block", None)
    assert fatbin.compressed(b".version 8.0\n.target sm_80\n") is None
