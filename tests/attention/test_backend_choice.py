"""use_backend holds where it says: in its block, its thread and its asyncio task, however often it is entered."""

import asyncio
import threading

import mlx.core as mx
import pytest

from mlx_flash import backends, use_backend


@pytest.fixture(autouse=True)
def _environment(monkeypatch):
    monkeypatch.setenv("MLX_FLASH_BACKEND", "reference")


def name() -> str:
    return backends.current_backend().name


def simulator() -> use_backend:
    """Made, but chosen in no context that a test looks at."""
    made = []
    thread = threading.Thread(target=lambda: made.append(use_backend("simulator")))
    thread.start()
    thread.join()
    return made[0]


def test_entered_twice():
    chosen = simulator()
    for _ in range(2):
        with chosen as backend:
            assert name() == backend.name == "simulator"
        assert name() == "reference"


@pytest.mark.parametrize("value", ([], {}, 3, b"reference", mx.array(1)), ids=str)
def test_a_name_is_a_string(value):
    for arguments in ((value,), ("reference", value)):
        with pytest.raises(ValueError, match="expected one of"):
            use_backend(*arguments)


def test_entered_inside_itself():
    chosen = simulator()
    with chosen, use_backend("reference"), chosen:
        assert name() == "simulator"
    assert name() == "reference"


def test_blocks_that_overlap():
    """Whichever ends first, the other's choice stays until it ends."""
    one, other = simulator(), simulator()
    one.__enter__()
    with use_backend("reference"):
        one.__exit__(None, None, None)
        assert name() == "reference"
        other.__enter__()
    assert name() == "simulator"
    other.__exit__(None, None, None)
    assert name() == "reference"


def test_a_choice_without_a_block(monkeypatch):
    """It holds until another is made; many of them leave nothing behind."""

    def work():
        for _ in range(100):
            use_backend("simulator")
        sizes.append(len(backends._choices.get()))
        names.append(name())
        with use_backend("reference"):
            names.append(name())
        names.append(name())

    names, sizes = [], []
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert names == ["simulator", "reference", "simulator"] and sizes == [2]
    assert name() == "reference"


def test_one_object_in_many_threads():
    """Made in one thread, entered in others: each has it inside of its block, and nobody else."""
    chosen, barrier, seen = simulator(), threading.Barrier(4), []

    def work():
        with chosen:
            barrier.wait(60)
            inside = name()
            barrier.wait(60)
        seen.append((inside, name()))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == [("simulator", "reference")] * 4


def test_closed_in_another_task():
    """The block is closed in another task, as by a server's shutdown or a test's asynchronous fixture."""

    async def begin(chosen):
        chosen.__enter__()
        return name()

    async def end(chosen):
        chosen.__exit__(None, None, None)
        return name()

    async def main():
        chosen = simulator()
        began = await asyncio.create_task(begin(chosen))
        between = name()
        ended = await asyncio.create_task(end(chosen))
        chosen.__enter__()
        inherited = await asyncio.create_task(end(chosen))
        return began, between, ended, inherited, name()

    assert asyncio.run(main()) == ("simulator", "reference", "reference", "reference", "simulator")
    assert name() == "reference"


def test_an_error_inside_ends_the_block():
    with pytest.raises(ZeroDivisionError), use_backend("simulator"):
        raise ZeroDivisionError
    assert name() == "reference"
