"""Tests that play a GPU see the code of a launch itself, and write nothing into MLX's own folder."""

import pytest

from mlx_flash.metal.ptx import by_name


@pytest.fixture(autouse=True)
def code_in_launches(monkeypatch):
    monkeypatch.setattr(by_name, "_finds_stored_kernels", lambda: False)
