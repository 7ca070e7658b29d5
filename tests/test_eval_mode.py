"""mla_jax.eval_mode and starting again what is done: short files are evaluated whole, finished runs are left alone."""

import json
import math
import shutil
from pathlib import Path

import pytest
from run_tools import listing, train_flags

from mla_jax import eval_mode
from mla_jax.main import main

pytest_plugins = ["run_fixtures"]


@pytest.fixture
def run(trained_run: Path, tmp_path: Path, run_env: Path) -> Path:
    return Path(shutil.copytree(trained_run, tmp_path / "run"))


def test_a_file_shorter_than_a_window_is_evaluated(run: Path, tmp_path: Path) -> None:
    path = tmp_path / "one.txt"
    path.write_text("A cat sat.\n")
    evaluation = eval_mode.evaluate(run, str(path))
    assert len(evaluation.stories) == 1
    assert evaluation.result.n_bytes == len("A cat sat.")
    # Every piece of the story and the separator that closes it, by the definition of bits per byte.
    assert len(evaluation.result.nll) == evaluation.stories[0]["tokens"]
    by_hand = evaluation.result.nll.sum(dtype=float) / math.log(2) / len("A cat sat.")
    assert evaluation.row["metrics"]["bits_per_byte"] == pytest.approx(by_hand)


def test_a_finished_run_started_again_is_left_as_it_is(
    run: Path, stories_file: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    def kept() -> dict[str, str]:
        return {name: digest for name, digest in listing(run).items() if "tensorboard" not in name}

    before = kept()
    changed = "--config.optim.learning_rate=0.5"
    assert main(["mla_jax", *map(str, train_flags(stories_file, run)), changed]) == 0
    said, warned = capfd.readouterr()
    assert "this run is finished" in said and "Nothing was trained" in said and "-> 0.5" in said
    assert "Resuming" not in warned
    after = kept()
    for name in ("result.json", "metrics.jsonl", "samples.txt", "report.md"):
        assert after[name] == before[name], name


def test_a_run_that_went_on_after_its_report_and_was_stopped_is_not_called_finished(
    run: Path, stories_file: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Its report would be of other weights than the newest."""
    flags = [*map(str, train_flags(stories_file, run))]
    result = json.loads((run / "result.json").read_text())
    done = result["metrics"]["step"]
    result["metrics"]["step"] = done - 1  # as if it had been finished there, continued to `done` and stopped
    (run / "result.json").write_text(json.dumps(result))
    assert main(["mla_jax", *flags, f"--config.train.steps={done - 1}"]) == 2
    assert f"this run stands at step {done} and is not finished: give at least {done}" in capfd.readouterr().err
