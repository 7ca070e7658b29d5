"""configs/smoke.py: every stage once from an empty cache, in a minute or less on two CPU cores."""

import json
import resource
from pathlib import Path

import pytest
from run_tools import call

from mla_jax.rows import read_rows

FOLDER = {
    *(".lock", "config.json", "tokenizer.model", "data.json", "metrics.jsonl", "result.json", "report.md"),
    *("samples.txt", "checkpoints", "plots", "tensorboard"),
}


@pytest.mark.timeout(240)
def test_smoke_from_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XLA_FLAGS", raising=False)  # compiled as for a user, who has no flags for tests
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    said = call("--config=smoke", f"--workdir={tmp_path / 'smoke'}", cache=tmp_path / "cache", cwd=tmp_path)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    run = tmp_path / "smoke"
    assert {path.name for path in run.iterdir()} == FOLDER
    rows = read_rows(run / "metrics.jsonl")
    assert [row["step"] for row in rows if row["kind"] == "eval"] == [10, 20]
    assert rows[-1]["loss"] < json.loads((run / "result.json").read_text())["metrics"]["baseline_uniform"]
    for words in (
        "validation loss",
        "bits per byte",
        "KV cache",
        "unigram baseline",
        "sample 1",
        "run folder",
        "next ",
    ):
        assert words in said, words
    # Processor time, which other tests at work beside this one do not change much: 60 s of it take less than a
    # minute on two idle cores.
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    assert seconds < 60, f"took {seconds:.0f} s"
