"""The notebooks, made from the .py files beside this one.

    python notebooks/build.py              the cells; outputs stay where no code cell has changed
    python notebooks/build.py --execute    the outputs too, at full size (needs nbclient and ipykernel; 15 minutes)

Names of notebooks (01_train_and_sample) behind it choose among them.

A line `# %%` begins a code cell, `# %% [markdown]` text, and `# %% first` is the cell of _first_cell.py, which installs
the package.
"""

import json
import re
import sys
import tempfile
from collections.abc import Iterable
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


def notebook(path: Path, outputs: list[list[dict[str, Any]]] | None = None) -> str:
    """The text of the .ipynb file (nbformat 4.5). outputs: of each code cell; None = those of the file beside it, where
    its code is the same, else none."""
    made: list[dict[str, Any]] = []
    parts = cells(path.read_text(encoding="utf-8"))
    codes = [source for kind, source in parts if kind == "code"]
    shown = iter(_kept(path.with_suffix(".ipynb"), codes) if outputs is None else outputs)
    for number, (kind, source) in enumerate(parts):
        cell: dict[str, Any] = {"cell_type": kind, "id": f"cell-{number}", "metadata": {}}
        cell["source"] = source.splitlines(keepends=True)
        made.append(cell | ({"execution_count": None, "outputs": next(shown)} if kind == "code" else {}))
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    content = {"cells": made, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


def _kept(path: Path, codes: list[str]) -> list[list[dict[str, Any]]]:
    """The outputs in a notebook whose code cells are `codes`; empty ones where they are not."""
    if path.is_file():
        old = [c for c in json.loads(path.read_text(encoding="utf-8"))["cells"] if c["cell_type"] == "code"]
        if ["".join(cell["source"]) for cell in old] == codes:
            return [cell["outputs"] for cell in old]
    return [[] for _ in codes]


def execute(path: Path) -> list[list[dict[str, Any]]]:
    """Run a notebook in an empty folder, as a reader would; what each code cell showed, but for stderr (progress)."""
    import nbclient
    import nbformat

    content = nbformat.reads(notebook(path, [[] for kind, _ in cells(path.read_text()) if kind == "code"]), 4)
    with tempfile.TemporaryDirectory() as folder:
        nbclient.NotebookClient(content, timeout=1800, resources={"metadata": {"path": folder}}).execute()
        places = (folder, str(HERE.parent), str(Path.home()))
    code = [cell for cell in content["cells"] if cell["cell_type"] == "code"]
    return [_joined(_clean(output, places) for output in cell["outputs"]) for cell in code]


KERNEL_ARGUMENTS = re.compile(r" -f \S+\.json( --\S+)*")  # where a command line is shown: that of Jupyter's kernel
ANSI = re.compile(r"\x1b\[[0-9;]*m")


def _clean(output: dict[str, Any], places: tuple[str, ...]) -> dict[str, Any] | None:
    """One output without what this machine alone has: names of its folders, counters, progress on stderr. rich prints
    each line as an output of its own, with an HTML form beside it; all text becomes one stream."""
    if output["output_type"] == "stream":
        return None if output["name"] == "stderr" else _stream(output["text"], places)
    data = output.get("data", {})
    page = data.get("text/plain", "").startswith("<IPython.core.display.HTML")  # shown for its own sake, not rich's
    for kind in ("image/png", "text/markdown", *["text/html"] * page):
        if kind in data:
            value = data[kind] if kind == "image/png" else data[kind].splitlines(keepends=True)
            return {"output_type": "display_data", "data": {kind: value}, "metadata": {}}
    return _stream(data["text/plain"].rstrip() + "\n", places) if "text/plain" in data else None


def _stream(text: str, places: tuple[str, ...]) -> dict[str, Any]:
    text = KERNEL_ARGUMENTS.sub("", ANSI.sub("", text)).replace(sys.executable, "python")
    for place in places:
        text = text.replace(place + "/", "").replace(place, ".")
    return {"output_type": "stream", "name": "stdout", "text": text.splitlines(keepends=True)}


def _joined(outputs: Iterable[dict[str, Any] | None]) -> list[dict[str, Any]]:
    """Without empty ones, and streams that follow one another as one."""
    made: list[dict[str, Any]] = []
    for output in outputs:
        if output and made and output["output_type"] == made[-1]["output_type"] == "stream":
            made[-1]["text"] += output["text"]
        elif output:
            made.append(output)
    return made


if __name__ == "__main__":
    names = [name for name in sys.argv[1:] if name != "--execute"]
    for source in sources():
        if names and source.stem not in names:
            continue
        outputs = execute(source) if "--execute" in sys.argv[1:] else None
        source.with_suffix(".ipynb").write_text(notebook(source, outputs), encoding="utf-8")
        print(source.with_suffix(".ipynb").name, flush=True)
