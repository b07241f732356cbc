"""patch() in two threads at once."""

import threading
from collections.abc import Callable
from contextvars import copy_context

import mlx_flash


def reports_of_two(policy: str, own_calls: Callable, other_calls: Callable) -> list:
    """The reports of a patch in this thread and of one in another, which has the same context. Both are active while
    either makes its calls."""
    theirs, entered, done = [], threading.Event(), threading.Event()

    def elsewhere():
        with mlx_flash.patch(policy=policy) as report:
            other_calls()
            theirs.append(report)
            entered.set()
            done.wait(60)

    with mlx_flash.patch(policy=policy) as own:
        thread = threading.Thread(target=copy_context().run, args=(elsewhere,))
        thread.start()
        assert entered.wait(60)
        own_calls()
        done.set()
        thread.join()
    return [own, *theirs]
