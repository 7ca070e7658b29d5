"""Kernels and the model import each other in one direction only: what kernels take of the model imports no kernel."""

import re
from pathlib import Path

import mla_jax

PACKAGE = Path(mla_jax.__file__).parent


def imported(path: Path, folder: str) -> set[str]:
    """Modules of mla_jax/folder that a file imports."""
    text = path.read_text(encoding="utf-8")
    found = set(re.findall(rf"^from mla_jax\.{folder}\.(\w+) import", text, re.MULTILINE))
    for names in re.findall(rf"^from mla_jax\.{folder} import ([\w, ]+)", text, re.MULTILINE):
        found |= {name.partition(" as ")[0].strip() for name in names.split(",")}
    return found


def test_kernels_take_plain_functions_of_the_model_alone() -> None:
    taken = set().union(*(imported(path, "model") for path in (PACKAGE / "kernels").glob("*.py")))
    assert taken == {"functions", "moe_router"}
    for name in taken:
        text = (PACKAGE / "model" / f"{name}.py").read_text(encoding="utf-8")
        assert not re.search(r"^(from|import) mla_jax", text, re.MULTILINE), name
