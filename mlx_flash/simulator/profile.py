"""Counts what launches do."""

from contextlib import contextmanager


class Profile:
    """The launches of one `with profile()` block."""

    def __init__(self):
        self.launches: list[dict] = []

    @property
    def matmuls(self) -> int:
        """8x8x8 simdgroup matmuls of all launches."""
        return sum(launch["matmuls"] for launch in self.launches)


class _Record:
    def __init__(self):
        self.active: list[Profile] = []

    def counting(self) -> bool:
        return bool(self.active)

    def add(self, kernel, launch):
        if not self.active:
            return
        c = launch.counters
        entry = {"kernel": kernel.name, "threadgroups": launch.total, "threadgroup_bytes": launch.arena_bytes}
        for name in ("matmuls", "exp2", "log2", "shuffles", "reductions", "group_barriers", "simd_barriers"):
            entry[name] = getattr(c, name)
        for profile in self.active:
            profile.launches.append(entry)


record = _Record()


@contextmanager
def profile():
    """`with profile() as p:` counts the launches inside the block."""
    counted = Profile()
    record.active.append(counted)
    try:
        yield counted
    finally:
        record.active.remove(counted)
