"""Every test of this folder is about Metal without a Mac, and runs the simulator or compiles for it."""


def pytest_itemcollected(item):
    item.add_marker("simulator")
