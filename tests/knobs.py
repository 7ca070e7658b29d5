"""Configs for tests: configs/base.py with other values."""

import json
from typing import Any

from mla_jax.config_files import load_config_dict

BASE = load_config_dict("base").to_dict()


def with_knobs(**dotted: Any) -> dict[str, Any]:
    """configs/base.py as nested dictionaries, with other values, unresolved."""
    content = json.loads(json.dumps(BASE))
    for key, value in dotted.items():
        *sections, field = key.split(".")
        target = content
        for section in sections:
            target = target[section]
        target[field] = value
    return content
