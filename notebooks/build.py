"""The notebooks, made from the .py files beside this one: python notebooks/build.py

A line `# %%` begins a code cell, `# %% [markdown]` text, and `# %% first` is the cell of _first_cell.py, which installs
the package.
"""

import json
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent


def sources() -> list[Path]:
    """The .py files of the notebooks, in order."""
    return sorted(HERE.glob("[0-9][0-9]_*.py"))


def cells(text: str) -> list[tuple[str, str]]:
    """[("markdown" | "code", source), ...]"""
    first = (HERE / "_first_cell.py").read_text(encoding="utf-8").removeprefix("# %%\n").strip()
    found = []
    for part in ("\n" + text).split("\n# %%")[1:]:
        kind, _, body = part.partition("\n")
        if kind.strip() == "first":
            found.append(("code", first))
        elif kind.strip() == "[markdown]":
            found.append(("markdown", "\n".join(line.removeprefix("#").removeprefix(" ") for line in body.split("\n"))))
        else:
            found.append(("code", body))
    return [(kind, source.strip("\n")) for kind, source in found]


def script(path: Path) -> str:
    """A notebook as one Python program: its code cells."""
    return "\n\n".join(source for kind, source in cells(path.read_text(encoding="utf-8")) if kind == "code") + "\n"


def notebook(path: Path) -> str:
    """The text of the .ipynb file (nbformat 4.5), without outputs."""
    made: list[dict[str, Any]] = []
    for number, (kind, source) in enumerate(cells(path.read_text(encoding="utf-8"))):
        cell: dict[str, Any] = {"cell_type": kind, "id": f"cell-{number}", "metadata": {}}
        cell["source"] = source.splitlines(keepends=True)
        made.append(cell | ({"execution_count": None, "outputs": []} if kind == "code" else {}))
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    content = {"cells": made, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    for source in sources():
        source.with_suffix(".ipynb").write_text(notebook(source), encoding="utf-8")
        print(source.with_suffix(".ipynb").name)
