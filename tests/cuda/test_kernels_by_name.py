"""The bytes that a launch passes in place of a kernel's code, and where MLX finds the code. A stub plays MLX's part."""

from functools import cache

import mlx.core as mx
import pytest

from mlx_flash.common.mlx_private import compiled_name
from mlx_flash.metal.ptx import by_name, kernel, metal_kernel

pytestmark = pytest.mark.ptx

SOURCE = "uint i = thread_position_in_grid.x; y[i] = x[i];"
CALL = dict(grid=(64, 1, 1), threadgroup=(64, 1, 1), output_shapes=[(64,)], output_dtypes=[mx.float32])


find_out = by_name.finds_stored_kernels.__wrapped__  # conftest.py puts another answer in its place


@pytest.fixture
def folder(monkeypatch, tmp_path):
    monkeypatch.setenv("MLX_PTX_CACHE_DIR", str(tmp_path / "compiled"))
    monkeypatch.setattr(kernel, "gpu", lambda: "sm_90")
    monkeypatch.setattr(by_name, "finds_stored_kernels", cache(find_out))
    return tmp_path / "compiled"


@pytest.fixture
def loaded(monkeypatch, folder):
    """The code of every launch as MLX would load it: from its folder, else what it is given."""
    found = []

    def launch(*, name, compiled_source, output_shapes, output_dtypes, **_):
        place = folder / f"{compiled_name(name, compiled_source)}.ptx"
        stored = place.exists() and place.with_suffix(".txt").read_text() == f"{name}\t{name}\n"
        code = place.read_bytes() if stored else compiled_source
        found.append((name, len(compiled_source), code))
        if b".entry" not in code and not code.startswith(bytes.fromhex("50ed55ba")):
            raise RuntimeError(f"Failed to load compiled {name} kernel")
        return [mx.zeros(shape, dtype) for shape, dtype in zip(output_shapes, output_dtypes)]

    monkeypatch.setattr(mx.fast, "precompiled_cuda_kernel", launch)
    return found


def launch(source=SOURCE):
    metal_kernel(name="probe", input_names=["x"], output_names=["y"], source=source)(inputs=[mx.zeros(64)], **CALL)


def test_a_launch_hands_over_a_few_bytes_and_mlx_finds_the_code(loaded):
    launch()
    launch()
    (tried, *_), *launches = loaded
    assert tried == "mlx_flash_nothing", "tried before anything depends on it, once"
    assert len(launches) == 2
    for name, handed_over, code in launches:
        assert handed_over == 16 and len(code) > 500 and name in code.decode(errors="replace")


def test_other_code_under_the_same_name_is_another_file(loaded):
    launch()
    launch(SOURCE.replace("x[i]", "x[i] + 1.0f"))
    launch()
    (_, (first, _, plain), (second, _, more), (_, _, again)) = loaded
    assert first == second and plain == again != more


def test_where_mlx_does_not_look_there_the_code_is_handed_over(monkeypatch, loaded, folder):
    monkeypatch.setattr(by_name, "compiled_kernels", lambda: folder.parent / "elsewhere")
    launch()
    assert loaded[-1][1] == len(loaded[-1][2]) > 500


def test_a_folder_that_cannot_be_written(monkeypatch, loaded, folder):
    folder.write_text("a file in its place")
    launch()
    assert loaded[-1][1] == len(loaded[-1][2]) > 500


def test_a_damaged_file_is_written_anew(loaded, folder):
    launch()
    code = loaded[-1][2]
    (stored,) = (path for path in folder.glob("*.ptx") if "nothing" not in path.name)
    stored.write_bytes(b"half")
    launch()
    assert loaded[-1][2] == code


def test_names_that_mlx_would_split_into_folders(loaded):
    by_name.finds_stored_kernels()
    code = b".entry " + bytes(100)
    assert len(by_name.code_or_name("n" * 228, code)) == 16
    assert by_name.code_or_name("n" * 229, code) == code
