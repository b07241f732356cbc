"""Tests that play a GPU see the code of a launch itself, and write nothing into MLX's own folder."""

import pytest

from mlx_flash.metal.ptx import by_name


@pytest.fixture(autouse=True)
def code_in_launches():
    # Not by the fixture monkeypatch: made first, it would put back last what tests change, over other fixtures' tables.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(by_name, "finds_stored_kernels", lambda: False)
        yield
