"""Function constants: values that a Metal kernel gets when it is built, not when it runs."""

import re
from collections.abc import Mapping

import numpy as np

_MARK = "msl_function_constant_"
_DEFINED = re.compile(r"\bis_function_constant_defined\s*\(\s*(\w+)\s*\)")


def lookup(values: Mapping[str, object], name: str, index: int):
    """The value given for a function constant, by its name or by its index; None if there is none."""
    return values.get(name, values.get(str(index)))


def specialise(text: str, constants: Mapping[str, int], values: Mapping[str, object]) -> str:
    """The translated text with values for its function constants.

    A function constant without a value may be declared, but using it is an error.
    """
    known = {*constants, *map(str, constants.values())}
    for key in values:
        if key not in known:
            raise ValueError(
                f"There is no function constant {key}; there are "
                f"{', '.join(f'{n} ({i})' for n, i in constants.items()) or 'none'}."
            )
    present = {name: lookup(values, name, index) for name, index in constants.items()}
    text = _DEFINED.sub(lambda m: "true" if present.get(m[1]) is not None else "false", text)
    for name, value in present.items():
        if value is not None:
            text = re.sub(rf"= {_MARK}{name}\b", f"= {_literal(value)}", text)
            continue
        text = re.sub(rf"\bconstant ([^=;]*) = {_MARK}{name}\b", r"extern constant \1", text)
    return text


def _literal(value) -> str:
    if isinstance(value, (bool, np.bool_)):
        return "true" if value else "false"
    if isinstance(value, (float, np.floating)):
        return f"{float(value)!r}f"
    if isinstance(value, (int, np.integer)):
        return str(int(value))
    raise ValueError(f"A function constant is a bool, an int or a float, not {value!r}.")
