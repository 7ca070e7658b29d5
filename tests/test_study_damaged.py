"""study.rows and row_checks: a damaged row is named and its run counts as missing; merging loses no row."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from study_rows import row, rows_of, study

from mla_jax.errors import run_command
from mla_jax.main import main
from mla_jax.study import rows
from mla_jax.study.plan import plan
from mla_jax.study.rows import gather, read


def sound_row(number: int = 0) -> dict[str, Any]:
    return row(plan(study(rates=(), seeds=(0,)), rows_of()).tasks[number])


def spoilt(made: dict[str, Any], path: str, value: Any = None) -> dict[str, Any]:
    """A copy without what `path` leads to, or with `value` there."""
    made = copy.deepcopy(made)
    target = made
    for name in path.split("."):
        inside, at = target, int(name) if isinstance(target, list) else name
        target = inside[at]
    if value is None:
        del inside[at]
    else:
        inside[at] = value
    return made


DAMAGES = [
    ("metrics", None, "metrics is missing"),
    ("curve", None, "curve is missing"),
    ("curve.eval", [], "curve.eval is empty"),
    ("curve.eval", [[1]], "curve.eval[0] is '[1]' and must be a list of 2"),
    ("study", {}, "study.name is missing"),
    ("study", "x", "study is 'x' and must be a section"),
    ("study", None, "study is missing"),
    ("study.seconds", None, "study.seconds is missing"),
    ("study.sharing", 0, "study.sharing is '0' and must be a number above 0"),
    ("study.status", "cut", "study.status is 'cut' and must be one of failed, diverged, done"),
    ("study.params.total", None, "study.params.total is missing"),
    ("data_fingerprint", None, "data_fingerprint is missing"),
    ("time", None, "time is missing"),
    ("metrics.best_valid_loss", "abc", "metrics.best_valid_loss is 'abc' and must be a number above 0"),
    ("metrics.tokens_per_s", 0.0, "metrics.tokens_per_s is '0.0' and must be a number above 0"),
    ("by_position.2", "abc", "by_position.2 is 'abc' and must be a list"),
    ("story_losses", [1.0, "x"], "story_losses[1] is 'x' and must be a number"),
    ("facts.0.accuracy", None, "facts[0].accuracy is missing"),
    ("spectra.1", 3, "spectra[1] is '3' and must be a section"),
    ("config", None, "config is missing"),
    ("config.format", 999, "has format 999, newer than"),
    ("config.config.model", {}, "model."),
    ("config.config.train.steps", "many", "config.config.train.steps is 'many'"),
]


@pytest.mark.parametrize(("path", "value", "says"), DAMAGES, ids=[f"{path} {value}" for path, value, _ in DAMAGES])
def test_a_damaged_row_is_named_once_and_counts_as_missing(tmp_path: Path, caplog, path, value, says) -> None:
    (tmp_path / "rows").mkdir()
    bad, good = tmp_path / "rows" / "a.json", tmp_path / "rows" / "b.json"
    bad.write_text(json.dumps(spoilt(sound_row(), path, value)))
    good.write_text(json.dumps(sound_row(1)))
    for _ in range(2):  # a training reads them again and again
        found = gather(tmp_path, with_committed=False)
    (line,) = caplog.messages
    assert line.startswith(f"{bad} cannot be used (") and says in line and "counts as missing" in line
    assert [r["name"] for r in found.by_key.values()] == [sound_row(1)["name"]]


def test_what_diverged_or_failed_runs_do_not_have_is_not_missed(tmp_path: Path) -> None:
    measured = ("by_position", "story_losses", "facts", "spectra", "experts", "stories")
    diverged, failed = sound_row(), sound_row(1)
    diverged["study"]["status"], failed["study"]["status"] = "diverged", "failed"
    diverged["metrics"], failed["metrics"] = {"best_valid_loss": None, "best_step": 0, "valid_loss": None}, {}
    diverged["curve"]["eval"] = []
    for made in (diverged, failed):
        for name in measured:
            del made[name]
    del failed["curve"]
    (tmp_path / "all.jsonl").write_text(json.dumps(diverged) + "\n" + json.dumps(failed) + "\n")
    found = read([tmp_path / "all.jsonl"])
    assert len(found.by_key) == 2 and not found.unreadable


def test_damaged_lines_are_named_by_their_number_wherever_they_stand(tmp_path: Path) -> None:
    path = tmp_path / "study_x.jsonl"
    whole = json.dumps(sound_row())
    path.write_text(f"{whole[:300]}\n{whole}\n\n[1]\n{whole[:200]}")
    found = read([path])
    assert len(found.by_key) == 1
    places = [line.partition(" cannot")[0] for line in found.unreadable]
    assert places == [f"{path}, line {n}," for n in (1, 4, 5)]  # the last too: no process appends to these files


def test_damaged_benchmark_rows_are_named_too(tmp_path: Path) -> None:
    m = {"suite": "decode", "point": "mha", "batch": 1, "context": 512, "tokens_per_s": 9.0, "repeats": 5}
    good = {
        "name": "mha",
        "device": "gpu",
        "time": "2026-01-01",
        "metrics": m | {"ms": 1.0, "ms_low": 0.9, "ms_high": 1.1},
    }
    made = [
        good,
        spoilt(good, "device"),
        spoilt(good, "metrics.ms", "fast"),
        spoilt(good, "time"),
        {"name": "x", "metrics": 3},
    ]
    path = tmp_path / "bench.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in made))
    found = read([path])
    assert found.bench == (good,) and [line.split()[2] for line in found.unreadable] == ["2,", "3,", "4,"]


@pytest.mark.parametrize("mode", ["--dry_run", "--report_only"])
def test_a_plan_and_a_report_go_on_without_the_damaged_row(tmp_path: Path, capsys, caplog, monkeypatch, mode) -> None:
    from mla_jax.config_files import load_config_dict
    from mla_jax.study.grid import from_config_dict

    monkeypatch.setattr(rows, "committed_files", list)
    first, second, *_ = plan(from_config_dict(load_config_dict("study_smoke")), rows_of()).tasks
    folder = tmp_path / "study"
    (folder / "rows").mkdir(parents=True)
    (folder / "study.json").write_text('{"study": "smoke"}')
    (folder / "rows" / f"{first.name}.json").write_text(json.dumps(spoilt(row(first), "metrics")))
    (folder / "rows" / f"{second.name}.json").write_text(json.dumps(row(second)))
    assert main(["mla_jax", "--mode=study", "--config=study_smoke", f"--workdir={folder}", mode]) == 0
    out = capsys.readouterr().out
    assert len(caplog.messages) == 1 and "metrics is missing" in caplog.messages[0]
    if mode == "--dry_run":
        assert out.count("| done |") == 1 and "| 1 | " in out and out.count("| to do |") >= 10
    else:
        assert "1 runs of 1 points" in (folder / "report.md").read_text()


def merged(*paths: Path) -> int:
    return run_command(rows._main, [str(path) for path in paths])


def test_merging_refuses_rows_that_it_would_lose(tmp_path: Path, capsys) -> None:
    into, back = tmp_path / "all.jsonl", tmp_path / "back.jsonl"
    first, second = (json.dumps(sound_row(n)) + "\n" for n in (0, 1))
    bench = json.dumps({"name": "mha", "metrics": {"suite": "moe"}}) + "\n"
    newer = json.dumps(spoilt(sound_row(), "config.format", 999)) + "\n"

    def refused(says: str) -> None:
        before = into.read_text()
        assert merged(into, back) == 2
        err = capsys.readouterr().err
        assert err.startswith("mla_jax: ") and err.count("\n") == 1 and err.endswith(".\n") and says in err, err
        assert into.read_text() == before and not list(tmp_path.glob(".*"))

    for ours, theirs, says in (
        (bench * 3 + first, second, f"{into}, line 1, is no row of a study"),
        (first, second + bench, f"{back}, line 2, is no row of a study"),
        (first + "{]\n", second, f"{into}, line 2, cannot be used (it is no JSON object)"),
        (first, second[:99], f"{back}, line 1, cannot be used (it is no JSON object)"),
        (newer, second, "format 999"),
        (first, json.dumps(spoilt(sound_row(1), "curve")), "curve is missing"),
    ):
        into.write_text(ours)
        back.write_text(theirs)
        refused(says)
    back.write_text(second)
    assert merged(into, back) == 0 and len(read([into]).by_key) == 2


def test_merging_names_files_that_it_cannot_take(tmp_path: Path, capsys) -> None:
    good = tmp_path / "good.jsonl"
    good.write_text(json.dumps(sound_row()) + "\n")
    (tmp_path / "rows.txt").write_text("kept")
    for paths, says in (
        ((good,), "INTO.jsonl FROM.jsonl"),
        ((tmp_path / "rows.txt", good), "cannot be merged into"),
        ((tmp_path, good), "cannot be merged into"),
        ((tmp_path / "absent" / "x.jsonl", good), "cannot be merged into"),
        ((good, tmp_path / "absent.jsonl"), "is no file of rows"),
        ((good, tmp_path / "rows.txt"), "is no file of rows"),
    ):
        assert merged(*paths) == 2
        assert says in capsys.readouterr().err
    assert (tmp_path / "rows.txt").read_text() == "kept" and sorted(tmp_path.iterdir()) == [good, tmp_path / "rows.txt"]
    assert merged(tmp_path / "new.jsonl", good) == 0
