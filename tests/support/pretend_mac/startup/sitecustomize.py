"""Runs at the start of every Python process that a pretended Mac starts: disguises mlx.core when it is imported."""

import os
import sys
from importlib.machinery import PathFinder
from pathlib import Path

_SUPPORT = Path(__file__).resolve().parents[2]


class _Disguised:
    """The loader of mlx.core, followed by the disguise."""

    def __init__(self, loader):
        self.loader = loader

    def __getattr__(self, name):
        return getattr(self.loader, name)

    def create_module(self, spec):
        return self.loader.create_module(spec)

    def exec_module(self, module):
        self.loader.exec_module(module)
        pretend_mac.disguise(module)


class _Finder:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name != "mlx.core":
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None:
            spec.loader = _Disguised(spec.loader)
        return spec


if os.environ.get("PRETEND_MAC"):
    sys.path.append(str(_SUPPORT))
    import pretend_mac

    pretend_mac.report_darwin()
    sys.meta_path.insert(0, _Finder)
