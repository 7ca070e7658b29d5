"""What a study's row must hold: the one place where a damaged row is told, before a plan or a report trips over it."""

import math
from collections.abc import Iterable
from typing import Any

NUMBER, OR_NULL, POSITIVE = "a number", "a number or null", "a number above 0"  # above 0: what is divided by
_NAMES = {str: "text", int: "a whole number", bool: "true or false", dict: "a section", list: "a list"}

# A kind is a type or one of the words above; a dict of fields (others may be there too), "*" being any field; [kind]
# for a list, [kind, ...] for one that is not empty; a tuple of kinds for a list of that length.
_POINT = (NUMBER, NUMBER)
_EVERY = {
    **dict.fromkeys(("name", "config_hash", "device", "data_fingerprint", "tokenizer_sha256", "command", "time"), str),
    "metrics": dict,
    "versions": dict,
    "config": {"config": {"train": {"steps": int, "batch_size": int, "seq_len": int}}},  # the rest: by reading it
    "study": {
        **{"name": str, "tier": str, "status": str, "resumed": bool, "seed": int, "vocab_size": int, "kv_numbers": int},
        **{"learning_rate": NUMBER, "training_flops": POSITIVE, "seconds": NUMBER, "sharing": POSITIVE},
        "params": {"total": int, "non_embedding": int},
    },
}
_OF_STATUS = {
    "failed": {},
    "diverged": {
        "metrics": {"best_step": int, "best_valid_loss": OR_NULL},  # null: before its first evaluation
        "curve": {"eval": [_POINT]},
    },
    "done": {
        "metrics": {"best_step": int, "best_valid_loss": POSITIVE, "tokens_per_s": POSITIVE},
        "curve": {"eval": [_POINT, ...]},
        "by_position": {"1": list, "*": [_POINT, ...]},
        "story_losses": [NUMBER, ...],
        "facts": [{"kind": str, "distance": str, "accuracy": NUMBER, "chance": NUMBER}],
        "spectra": [
            {"layer": int, "entry": str, "width": int, "effective_rank": NUMBER, "singular_values": [NUMBER]},
        ],
        "experts": dict,
        "stories": [{"prompt": str, "text": str}],
    },
}
_DECODE = {
    **dict.fromkeys(("device", "time"), str),
    "metrics": {
        **{"point": str, "batch": int, "context": int, "repeats": int},
        **dict.fromkeys(("tokens_per_s", "ms", "ms_low", "ms_high"), POSITIVE),
    },
}
_MISSING = object()


def fault_of(row: dict[str, Any]) -> str:
    """What is wrong with a study's row, up to its config, whose reader has its own words; "" where nothing is."""
    if what := _fault(row, _EVERY, ""):
        return what
    status = row["study"]["status"]
    if status not in _OF_STATUS:
        return f"study.status is {status[:40]!r} and must be one of {', '.join(_OF_STATUS)}"
    return _fault(row, _OF_STATUS[status], "")


def fault_of_decode(row: dict[str, Any]) -> str:
    """The same of a decode benchmark's row."""
    return _fault(row, _DECODE, "")


def _fault(value: Any, kind: Any, field: str) -> str:
    if value is _MISSING:
        return f"{field} is missing"
    if isinstance(kind, dict) and isinstance(value, dict):
        lead = f"{field}." if field else ""
        found = (_fault(value.get(name, _MISSING), inner, lead + name) for name, inner in kind.items() if name != "*")
        any_field = (_fault(v, kind["*"], lead + name) for name, v in value.items()) if "*" in kind else ()
        return _first(found) or _first(any_field)
    if isinstance(kind, list) and isinstance(value, list):
        if not value and ... in kind:
            return f"{field} is empty"
        if kind[0] is NUMBER and all(type(v) in (float, int) for v in value):
            return ""  # quickly: the rows of the repository are read before each run
        return _first(_fault(v, kind[0], f"{field}[{i}]") for i, v in enumerate(value))
    if isinstance(kind, tuple) and isinstance(value, list) and len(value) == len(kind):
        return _first(_fault(v, inner, f"{field}[{i}]") for i, (v, inner) in enumerate(zip(value, kind, strict=True)))
    return "" if _is(value, kind) else f"{field} is {str(value)[:40]!r} and must be {_in_words(kind)}"


def _first(faults: Iterable[str]) -> str:
    return next(filter(None, faults), "")


def _is(value: Any, kind: Any) -> bool:
    if kind in (NUMBER, OR_NULL, POSITIVE):
        is_number = type(value) in (int, float) and (kind != POSITIVE or 0 < value < math.inf)
        return is_number or (kind == OR_NULL and value is None)
    return type(value) is kind


def _in_words(kind: Any) -> str:
    if isinstance(kind, tuple):
        return f"a list of {len(kind)}"
    return kind if isinstance(kind, str) else _NAMES[kind if isinstance(kind, type) else type(kind)]
