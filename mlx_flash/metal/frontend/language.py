"""Differences between versions of the Metal Shading Language that matter to compute kernels."""

VERSIONS = ("3.0", "3.1", "3.2", "4.0", "4.1")
_BFLOATS = (
    "bfloat", "bfloat2", "bfloat3", "bfloat4", "packed_bfloat2", "packed_bfloat3", "packed_bfloat4",
    "simdgroup_bfloat8x8",
)  # fmt: skip
# {name: the version that introduced it}. Lambdas, which came with 4.0, are recognised by their tokens in rules.py.
_SINCE = {**dict.fromkeys(_BFLOATS, "3.1"), "coherent(scope)": "3.2", "atomic_thread_fence": "3.2"}


def prefix(version: str) -> str:
    """Lines to put before a text: the version number, and macros that make names of later versions an error."""
    lines = ['#line 1 "language"', "#undef __METAL_VERSION__", f"#define __METAL_VERSION__ {version.replace('.', '')}0"]
    for name, since in _SINCE.items():
        if version < since:
            word = name.split("(")[0]
            lines += [f"#undef {word}", f"#define {name} msl_{word}_needs_Metal_{since.replace('.', '_')}"]
    return "\n".join([*lines, '#line 1 "metal"', ""])
