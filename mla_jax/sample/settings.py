"""The settings of a call of the sampler: each in the type that the rest expects, or refused with a sentence.

Bounds and choices are those of the config's `sample` section, which the command line is held to. Scalars and arrays of
numpy and JAX are as good as Python's; nothing is rounded, and neither strings nor truth values are numbers.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from mla_jax.config_bounds import CHOICES, broken
from mla_jax.errors import UserError

_WHOLE = ("max_new_tokens", "top_k", "seed")
_REMEDIES = {
    "prompts": "e.g. ['Once upon a time'], or [''] to start from nothing",
    "max_new_tokens": "e.g. 256, or leave it out",
    "temperature": "e.g. 0.8, or 0 for the likeliest token (greedy)",
    "top_k": "e.g. 40, or 0 for all tokens",
    "top_p": "e.g. 0.95, or 1 for all tokens",
    "min_p": "e.g. 0.05, or 0 for all tokens",
    "repetition_penalty": "e.g. 1.1, or 1 for none",
    "seed": "e.g. 0, or a list with one a prompt",
    "stop": "e.g. ['The end'], or leave it out",
    "cache_dtype": "use auto",
    "logprobs": "use one of them",
}


def number(name: str, value: Any) -> int | float:
    """A number inside its bounds. Raises UserError."""
    plain, whole = _plain(value), name in _WHOLE
    if isinstance(plain, bool) or not isinstance(plain, int if whole else (int, float)):
        _refuse(name, value, "it must be a whole number" if whole else "it must be a number")
    if rule := broken(f"sample.{name}", plain):
        _refuse(name, value, rule)
    return plain if whole else float(plain)


def seeds(value: Any, rows: int) -> np.ndarray:
    """uint32 [rows]: the given ones, or seed, seed + 1, ... of which 2^32 - 1 is followed by 0. Raises UserError."""
    plain = _plain(value)
    if not isinstance(plain, Sequence) or isinstance(plain, str):
        return np.uint32(number("seed", value)) + np.arange(rows, dtype=np.uint32)
    if len(plain) != rows:
        raise UserError(f"seed has {len(plain)} numbers for {rows} prompts: give one each, or a single number.")
    return np.asarray([number("seed", each) for each in plain], np.uint32)


def texts(name: str, value: Any) -> tuple[str, ...]:
    """A list of strings, as a tuple: `prompts` are at least one, strings of `stop` are not empty. Raises UserError."""
    plain, stops = _plain(value), name == "stop"
    listed = isinstance(plain, Sequence) and not isinstance(plain, str)
    if not listed or not all(isinstance(each, str) and (each or not stops) for each in plain):
        _refuse(name, value, f"it must be a list of strings{' that are not empty' if stops else ''}")
    if not plain and not stops:
        _refuse(name, value, "it must hold at least one string")
    return tuple(plain)


def choice(name: str, value: Any) -> str:
    """One of the values that the config's field may have. Raises UserError."""
    allowed = CHOICES[f"sample.{name}"]
    if not isinstance(value, str) or value not in allowed:
        _refuse(name, value, f"it must be one of {' | '.join(allowed)}")
    return value


def flag(name: str, value: Any) -> bool:
    """True or False. Raises UserError."""
    if not isinstance(plain := _plain(value), bool):
        _refuse(name, value, "it must be True or False")
    return plain


def _plain(value: Any) -> Any:
    """What arrays and their scalars hold as Python's own numbers, strings and lists; anything else as it is."""
    return value.tolist() if hasattr(value, "tolist") else value


def _refuse(name: str, value: Any, rule: str) -> None:
    shown = repr(_plain(value))
    shown = shown if len(shown) <= 60 else f"{shown[:57]}..."
    raise UserError(f"{name} is {shown}; {rule}: {_REMEDIES[name]}.")
