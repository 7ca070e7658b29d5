"""notebooks/: built from their sources, and run, shortened (MLA_JAX_QUICK=1), as plain Python; plots by their data."""

import importlib.util
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest_plugins = ["run_fixtures"]
FOLDER = Path(__file__).resolve().parents[1] / "notebooks"

if not FOLDER.is_dir():
    pytest.skip("the notebooks are in the repository, not in the package", allow_module_level=True)


def _build() -> Any:
    spec = importlib.util.spec_from_file_location("notebooks_build", FOLDER / "build.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


build = _build()
NAMES = [path.stem for path in build.sources()]


@pytest.fixture
def execute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run_env: Path):
    """Run a notebook's code cells in an empty folder; returns its variables."""
    import matplotlib

    before = matplotlib.get_backend()
    matplotlib.use("svg")  # stands for a notebook's own backend
    from matplotlib import pyplot as plt

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLA_JAX_QUICK", "1")

    def run(name: str) -> dict[str, Any]:
        variables: dict[str, Any] = {"__name__": "notebook"}
        exec(compile(build.script(FOLDER / f"{name}.py"), name, "exec"), variables)
        assert matplotlib.get_backend() == "svg"  # with another one, a notebook would show no figure any more
        return variables

    yield run
    plt.close("all")
    matplotlib.use(before)


def y_data(axes: Any, line: int = 0) -> np.ndarray:
    return np.asarray(axes.lines[line].get_ydata(), float)


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_is_what_its_source_makes(name: str) -> None:
    path = FOLDER / f"{name}.ipynb"
    assert path.read_text(encoding="utf-8") == build.notebook(FOLDER / f"{name}.py"), "run python notebooks/build.py"
    content = json.loads(path.read_text(encoding="utf-8"))
    first = next(cell for cell in content["cells"] if cell["cell_type"] == "code")
    source = "".join(first["source"])
    assert "-c" in source and '"jax"' in source  # pip is held to the installed JAX
    assert not any(line.lstrip().startswith(("!", "%")) for c in content["cells"] for line in c["source"]
                   if c["cell_type"] == "code")  # fmt: skip
    compile(build.script(FOLDER / f"{name}.py"), name, "exec")


@pytest.mark.parametrize("name", NAMES)
def test_the_outputs_show_figures_and_nothing_of_this_machine(name: str) -> None:
    """What a reader sees who runs nothing. A notebook whose code has changed has none until it is executed again."""
    found = json.loads((FOLDER / f"{name}.ipynb").read_text(encoding="utf-8"))["cells"]
    outputs = [output for cell in found if cell["cell_type"] == "code" for output in cell["outputs"]]
    assert any("image/png" in output.get("data", {}) for output in outputs), "python notebooks/build.py --execute"
    text = json.dumps(outputs, ensure_ascii=False)
    assert not re.search(r"/(tmp|home|root|Users)/|\\u001b|Traceback", text)
    assert {output.get("name", "stdout") for output in outputs} == {"stdout"}, "progress is on stderr"


def test_text_outputs_become_one_stream_without_colours_and_folders() -> None:
    rich = {"output_type": "display_data", "data": {"text/html": "<b>x</b>", "text/plain": "\x1b[1mx\x1b[0m"}}
    path = {"output_type": "stream", "name": "stdout", "text": "at /somewhere/runs/x\n"}
    noise = {"output_type": "stream", "name": "stderr", "text": "50 %"}
    image = {"output_type": "display_data", "data": {"image/png": "AAAA", "text/plain": "<Figure>"}}
    joined = build._joined(build._clean(output, ("/somewhere",)) for output in (rich, noise, path, image, rich))
    assert [output["output_type"] for output in joined] == ["stream", "display_data", "stream"]
    assert joined[0]["text"] == ["x\n", "at runs/x\n"] and joined[1]["data"] == {"image/png": "AAAA"}


def test_the_first_cell_pins_every_jax_package(tmp_path, monkeypatch) -> None:
    """Where mla_jax is missing, pip is called once, and cannot replace an installed jax, jaxlib or plugin."""
    calls = []
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr("subprocess.run", lambda command, check: calls.append(command))
    monkeypatch.delenv("MLA_JAX_SOURCE", raising=False)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="say in SOURCE"):  # as on Colab, where only the notebook was opened
        exec((FOLDER / "_first_cell.py").read_text(encoding="utf-8"), {})
    monkeypatch.chdir(FOLDER)
    exec((FOLDER / "_first_cell.py").read_text(encoding="utf-8"), {})
    ((*_, option, constraints, source),) = calls
    pinned = Path(constraints).read_text().splitlines()
    Path(constraints).unlink()
    assert option == "-c" and source == ".."
    assert any(re.fullmatch(r"jax==[\d.]+\S*", line) for line in pinned)
    assert any(line.startswith("jaxlib==") for line in pinned)


def test_02_the_two_forms_agree_and_the_bars_are_the_cache(execute, trained_run: Path, tmp_path: Path) -> None:
    shutil.copytree(trained_run, tmp_path / "runs" / "notebook_01")
    found = execute("02_kv_cache_and_latents")
    assert found["difference"] < 1e-5 and found["expanded"].shape == (1, 5, 2, 8)
    widths = [bar.get_width() for bar in found["axes"].patches]
    assert widths == [1024, 256, 512, 256, 288, 320]
    curves = [y_data(found["spectrum_axes"], i) for i in range(len(found["spectrum_axes"].lines))]
    assert len(curves) == 2 and all(c[0] == 1 and (np.diff(c) <= 0).all() and (c > 0).all() for c in curves)
    latents = [row for row in found["spectra"] if row["entry"] == "c_kv"]
    assert [len(c) for c in curves] == [row["width"] for row in latents]  # every direction is drawn


@pytest.mark.slow
def test_01_trains_and_samples(execute) -> None:
    found = execute("01_train_and_sample")
    train, valid = y_data(found["axes"], 0), y_data(found["axes"], 1)
    assert len(train) == 4 and len(valid) == 2 and valid[-1] < valid[0] < 8
    assert valid[-1] == pytest.approx(found["result"].row["metrics"]["valid_loss"])
    assert len(found["stories"]) == 3 and all(found["stories"].values())
    assert np.mean(y_data(found["position_axes"])) == pytest.approx(found["evaluation"].result.loss, rel=0.02)


@pytest.mark.slow
def test_03_reads_a_study(execute, tmp_path: Path) -> None:
    found = execute("03_reading_a_study")
    rows = [json.loads(path.read_text()) for path in sorted((tmp_path / "studies/notebook/rows").glob("*.json"))]
    losses = {row["name"]: row["metrics"]["best_valid_loss"] for row in rows}
    drawn = {line.label: line.y[0] for line in found["pareto"]}
    assert drawn == pytest.approx(losses) and set(losses) == {"mha", "mla_rope"}
    marks = [mark.get_xydata()[0].tolist() for mark in found["pareto_figure"].axes[0].lines]
    assert marks == [[row["study"]["kv_numbers"], pytest.approx(losses[row["name"]])] for row in rows]
    from matplotlib import pyplot as plt

    assert {found["figure"].number, found["pareto_figure"].number} <= set(plt.get_fignums())  # a notebook shows these
    curves = {row["name"]: [loss for _, loss in row["curve"]["eval"]] for row in rows}
    assert {line.get_label(): list(line.get_ydata()) for line in found["figure"].axes[0].lines} == curves
    assert all(path.read_text() for path in (tmp_path / "studies/notebook/logs").glob("*.txt"))  # not in the notebook
    assert found["difference"].mean == pytest.approx(100 * (losses["mla_rope"] / losses["mha"] - 1))


@pytest.mark.slow
def test_04_shows_experts(execute) -> None:
    found = execute("04_experts_at_work")
    assert (y_data(found["axes"], 0) >= 1).all()
    load = found["load"]
    assert load.shape[1] == 8 and np.allclose(load.mean(axis=1), 1, atol=1e-3)
    drawn = [axis.images[0].get_array() for axis in found["heat_axes"]]
    assert np.array_equal(drawn[0], found["early"]) and np.array_equal(drawn[1], load)
    assert np.array_equal(found["pair_axes"].images[0].get_array(), found["pairs"][0])
    assert found["pairs"][0].sum() == 4 * sum(
        len(t.tokens) for t in found["traces"]
    )  # top 2 of one layer by top 2 of the next
    assert "<span" in found["page"]


@pytest.mark.slow
def test_05_judges_the_model(execute, tmp_path: Path) -> None:
    found = execute("05_judge_your_model")
    judged = [json.loads(line) for line in (tmp_path / "runs/notebook_01/judged/rows.jsonl").read_text().splitlines()]
    judged = {row["name"]: row["metrics"]["overall"] for row in judged if "overall" in row["metrics"]}
    assert found["scores"] == judged
    assert list(found["scores"].values()) == [bar.get_width() for bar in found["axes"].patches]
    assert any("real" in name for name in found["scores"]) and "notebook_01" in " ".join(found["scores"])
    assert all(1 <= score <= 10 for score in found["scores"].values())
