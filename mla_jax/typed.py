"""From plain values (JSON, a ConfigDict as a dict) to a dataclass: names and types checked, errors as sentences."""

import dataclasses
import difflib
import typing
from typing import Any

from mla_jax.errors import UserError


def suggest(name: str, known: typing.Iterable[str], before: str = "", cutoff: float = 0.5) -> str:
    """' (did you mean X?)' or ''. `before` leads the name that is found, but has no part in how alike names are.

    cutoff: how alike they must be, of 1.
    """
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=cutoff)
    return f" (did you mean {before}{close[0]}?)" if close else ""


def build(cls: type, content: Any, prefix: str) -> Any:
    """A dataclass from plain values, their types checked. Raises UserError; `prefix` leads the field's name in it."""
    if not isinstance(content, dict):
        raise UserError(f"{prefix.rstrip('.') or 'the config'} is {content!r}; it must be a section of knobs.")
    types = typing.get_type_hints(cls)
    for name in content:
        if name not in types:
            raise UserError(f"{prefix}{name} is not a knob{suggest(str(name), types)}: configs/base.py lists them all.")
    values = {}
    for name, kind in types.items():
        if name not in content:
            raise UserError(f"{prefix}{name} is missing: start the config from configs/base.py, which has every knob.")
        if dataclasses.is_dataclass(kind):
            values[name] = build(kind, content[name], f"{prefix}{name}.")
        else:
            values[name] = _coerce(content[name], kind, f"{prefix}{name}")
    return cls(**values)


def _coerce(value: Any, kind: Any, field: str) -> Any:
    """`value` as `kind`; an int where a float is asked is fine, a bool where a number is asked is not."""
    if kind is Any:
        return value
    if typing.get_origin(kind) is tuple:
        item_kind = typing.get_args(kind)[0]
        if isinstance(value, (list, tuple)):
            return tuple(_coerce(item, item_kind, f"{field}[{i}]") for i, item in enumerate(value))
        raise UserError(f"{field} is {value!r}; it must be a tuple of {item_kind.__name__}, e.g. (1,).")
    if type(value) is int and kind in (int, float) and abs(value) >= 2**63:
        raise UserError(
            f"{field} is {str(value)[:20]}... ({len(str(value))} digits); it must fit in 64 bits: lower it."
        )
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not kind:
        raise UserError(f"{field} is {value!r}; it must be of type {kind.__name__}.")
    return value
