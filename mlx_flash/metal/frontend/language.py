"""Differences between versions of the Metal Shading Language, as far as compute kernels see them."""

VERSIONS = ("3.0", "3.1", "3.2", "4.0", "4.1")
_BFLOATS = (
    "bfloat", "bfloat2", "bfloat3", "bfloat4", "packed_bfloat2", "packed_bfloat3", "packed_bfloat4",
    "simdgroup_bfloat8x8",
)  # fmt: skip
# Name in the text: the version it came with. Lambdas, of 4.0, are told from tokens: rules.py.
_SINCE = {**dict.fromkeys(_BFLOATS, "3.1"), "coherent(scope)": "3.2", "atomic_thread_fence": "3.2"}


def prefix(version: str) -> str:
    """The lines before a text of this version: the number, and for names of later versions others that do not exist."""
    lines = ['#line 1 "language"', "#undef __METAL_VERSION__", f"#define __METAL_VERSION__ {version.replace('.', '')}0"]
    for name, since in _SINCE.items():
        if version < since:
            word = name.split("(")[0]
            lines += [f"#undef {word}", f"#define {name} msl_{word}_needs_Metal_{since.replace('.', '_')}"]
    return "\n".join([*lines, '#line 1 "metal"', ""])
