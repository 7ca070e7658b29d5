"""--mode study on the real command line: folders and flags that are refused, a plan, a study stopped or killed."""

import json
import re
import subprocess
import time
from pathlib import Path

import jax
import pytest
from run_tools import start

from mla_jax.main import main
from mla_jax.study import report

pytest_plugins = ["run_fixtures"]


def test_another_studys_folder_or_a_run_folder_is_refused(tmp_path, capsys) -> None:
    def refused(*arguments: object) -> str:
        assert main(["mla_jax", "--mode=study", *map(str, arguments)]) == 2
        err = capsys.readouterr().err
        assert err.startswith("mla_jax: ") and err.count("\n") == 1 and err.rstrip().endswith("."), err
        return err

    def folder_refused(folder: Path) -> str:
        """By a training, and by a dry run alike."""
        sentence = refused("--config=study_smoke", f"--workdir={folder}")
        assert refused("--config=study_smoke", f"--workdir={folder}", "--dry_run") == sentence
        return sentence

    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text("{}")
    assert "something else" in folder_refused(tmp_path / "run")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "study.json").write_text('{"study": "paper_a"}')
    assert "the study paper_a" in folder_refused(tmp_path / "other")
    (tmp_path / "other" / "study.json").write_text("[1]")
    assert "damaged" in folder_refused(tmp_path / "other")
    file = tmp_path / "file"
    file.write_text("x")
    assert "no folder" in folder_refused(file)
    assert "no folder" in folder_refused(file / "inside")
    assert "* ? [" in folder_refused(tmp_path / "a*")
    assert "is no study" in refused("--config=mha", f"--workdir={tmp_path / 'new'}")
    assert "did you mean study_smoke?" in refused("--config=study_smok", f"--workdir={tmp_path / 'new'}")
    assert "--config is missing" in refused(f"--workdir={tmp_path / 'new'}")
    assert "--workdir" in refused("--config=study_smoke")
    assert "given 2 times" in refused("--config=study_smoke", "--dry_run", "--workdir=a", "--workdir=b")
    assert "or empty" in refused("--config=study_smoke", "--dry_run", "--workdir=")
    assert "--max_minutes is 0" in refused("--config=study_smoke", "--max_minutes=0", f"--workdir={tmp_path / 'new'}")
    assert "choose one" in refused("--config=study_smoke", "--dry_run", "--report_only")
    assert "are rows of study smoke" in refused(
        "--config=study_smoke", "--report_only", f"--workdir={tmp_path / 'new2'}"
    )
    missing = tmp_path / "missing.txt"
    data = f"--config.common.data.path={missing}"
    assert "missing.txt" in refused("--config=study_smoke", data, f"--workdir={tmp_path / 'new3'}")
    assert not list(tmp_path.glob("new*"))


def test_study_flags_belong_to_the_study_and_a_study_is_not_trained(tmp_path, capsys) -> None:
    for arguments, says in (
        (("--config=study_smoke", f"--workdir={tmp_path / 'x'}"), "add --mode study"),
        (("--config=mha", f"--workdir={tmp_path / 'x'}", "--dry_run"), "--dry_run is for --mode study"),
        (("--mode=sample", f"--workdir={tmp_path / 'x'}", "--max_minutes=3"), "--max_minutes is for --mode study"),
    ):
        assert main(["mla_jax", *arguments]) == 2
        assert says in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


def test_a_dry_run_prints_the_plan_and_writes_nothing(tmp_path, capsys) -> None:
    assert main(["mla_jax", "--mode=study", "--config=study_smoke", "--dry_run", f"--workdir={tmp_path / 'x'}"]) == 0
    out = capsys.readouterr().out
    assert "(an estimate from the study's stated figures" in out
    assert out.count("| to do |") >= 10 and not (tmp_path / "x").exists()
    assert out.index("| minutes |") < out.index("minutes in all") < out.index("| to do |")  # the answer comes first
    assert main(["mla_jax", "--mode=study", "--config=study_optimizer", "--dry_run"]) == 0
    assert re.search(
        "Minutes on NVIDIA .*\n\nThis machine has another device, cpu .*expect other", capsys.readouterr().out
    )
    absent = ("--config=study_paper_b:files", "--config.common.data.path=absent.txt")
    assert main(["mla_jax", "--mode=study", *absent, "--dry_run"]) == 2
    assert "data.path is 'absent.txt'" in capsys.readouterr().err


def test_a_study_stops_goes_on_and_is_complete(tmp_path, capsys, run_env, monkeypatch) -> None:
    """The real command line, once through: stopped by its time limit in the first run, then finished, then idle.

    The repository's own rows are left out: reading them before every run is half of the test's time.
    """
    monkeypatch.setattr("mla_jax.study.rows.committed_files", list)
    config = f"--config={Path(__file__).parent / 'study_tiny.py'}"
    command = ["mla_jax", "--mode=study", config, f"--workdir={tmp_path / 'study'}"]
    assert main([*command, "--max_minutes=0.0001"]) == 0
    out = capsys.readouterr().out
    assert "0 runs done, 1 to go; stopped by the time limit" in out
    (kept,) = (tmp_path / "study" / "runs").glob("*/spent.json")
    first = json.loads(kept.read_text())["device_s"]
    began = time.monotonic()
    live = len(jax.live_arrays())
    assert main(command) == 0
    second = time.monotonic() - began
    out = capsys.readouterr().out
    assert "1 runs done, 0 to go\n" in out and "report.md" in out
    assert len(jax.live_arrays()) <= live + 2  # the run left nothing on the device
    (path,) = (tmp_path / "study" / "rows").iterdir()
    found = json.loads(path.read_text())
    assert found["study"]["resumed"] and found["study"]["status"] == "done" and found["metrics"]["step"] == 8
    assert first > 0.1 and first < found["study"]["seconds"] < first + second  # both calls count
    assert not kept.exists()
    assert [step for step, _ in found["curve"]["eval"]] == [4, 8]
    assert [step for step, _ in found["curve"]["train"]] == list(range(1, 9))  # none twice, none missing
    assert len(found["story_losses"]) == 6 and all(4 < loss < 8 for loss in found["story_losses"])
    assert [start for start, _ in found["by_position"]["2"]] == list(range(0, 64, 4))
    assert {s["entry"] for s in found["spectra"]} == {"k_latent", "v_latent"}
    assert all(0 < s["effective_rank"] <= s["width"] == 8 for s in found["spectra"])
    assert any(f["kind"] == "all" and f["n"] > 0 for f in found["facts"])
    assert len(found["stories"]) == 1 and found["stories"][0]["prompt"]
    assert not list((tmp_path / "study").rglob("samples.txt"))  # drawn once, for the row
    assert not (tmp_path / "study" / "runs" / path.stem / "checkpoints").exists()
    text = (tmp_path / "study" / "report.md").read_text()
    assert f"{found['metrics']['best_valid_loss']:.4f}" in text and "k_latent" in text
    written = path.stat().st_mtime_ns
    assert main(command) == 0 and path.stat().st_mtime_ns == written
    assert "begins" not in capsys.readouterr().out
    assert (tmp_path / "study" / "report.md").read_text() == text


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_study_killed_twice_gives_the_same_report(tmp_path: Path, run_cache: Path) -> None:
    """SIGKILL in two places, then the same command: report and results as of a study that nobody touched."""
    config = f"--config={Path(__file__).parent / 'study_killed.py'}"

    def begin(folder: str) -> subprocess.Popen:
        (tmp_path / folder).mkdir(exist_ok=True)
        return start("--mode=study", config, "--workdir=study", cache=run_cache, cwd=tmp_path / folder)

    whole = begin("whole")
    assert whole.wait(timeout=500) == 0, whole.communicate()
    for number_of_rows in (0, 1):
        process = begin("killed")
        folder = tmp_path / "killed" / "study"
        deadline = time.monotonic() + 300
        while time.monotonic() < deadline:  # kill it in the middle of a run, once that has a checkpoint
            rows = len(list((folder / "rows").glob("*.json")))
            saved = [p for p in (folder / "runs").glob("*/checkpoints/*") if p.name.isdigit()]
            if rows > number_of_rows or (rows == number_of_rows and saved):
                break
            time.sleep(0.02)
        process.kill()
        process.communicate()
    assert len(list((tmp_path / "killed" / "study" / "rows").glob("*.json"))) < 4
    last = begin("killed")
    assert last.wait(timeout=500) == 0, last.communicate()
    whole, killed = (tmp_path / name / "study" for name in ("whole", "killed"))
    assert (killed / "results.csv").read_text() == (whole / "results.csv").read_text()
    reports = [(folder / "report.md").read_text().partition(report.TIME) for folder in (whole, killed)]
    assert reports[0][0] == reports[1][0] and all("device minutes in 4 runs" in time for _, _, time in reports)
