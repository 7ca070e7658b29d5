"""The whole of it through real processes: train, kill -9, resume, stop, sample, eval."""

import json
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from run_tools import call, listing, small_config, start, story_texts, train_flags, write_stories

from mla_jax.data.prepare import prepare
from mla_jax.model import backend
from mla_jax.model.transformer import Transformer
from mla_jax.rows import read_rows
from mla_jax.runs import RunFolder
from mla_jax.train.checkpoint import Checkpoints
from mla_jax.train.optim import make_optimizer
from mla_jax.train.setup import with_vocabulary
from mla_jax.train.state import TrainState, abstract_state

pytest_plugins = ["run_fixtures"]
LONG = {"train.steps": 300, "train.eval_every": 50, "checkpoint.every": 25}


def checkpoint(run: Path, stories: Path) -> tuple[TrainState, dict[str, Any]]:
    """State and data place of a run's newest checkpoint."""
    from mla_jax.data.pipeline import train_iterator

    config = small_config(stories)
    prepared = prepare(config, quiet=True)
    config = with_vocabulary(config, prepared.tokenizer.vocab_size)
    model = Transformer(config.model, backend.choose(config.model))
    data = train_iterator(prepared, config)
    with Checkpoints(RunFolder(run), config.checkpoint) as checkpoints:
        state = checkpoints.restore(abstract_state(model, make_optimizer(config.optim)), data)
    return state, data.get_state()


def metrics(run: Path) -> list[dict[str, Any]]:
    """metrics.jsonl without what the clock decides."""
    clocked = ("time", "tokens_per_s", "data_wait", "mfu")
    rows = [row for row in read_rows(run / "metrics.jsonl") if row["kind"] != "startup"]
    return [{k: v for k, v in row.items() if k not in clocked} for row in rows]


def wait_for(run: Path, condition: Callable[[list[dict[str, Any]]], bool], process: subprocess.Popen) -> None:
    """Until the rows of metrics.jsonl satisfy `condition`."""
    deadline = time.monotonic() + 120
    while not condition(read_rows(run / "metrics.jsonl")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "training did not come so far"
        time.sleep(0.005)


def test_ten_steps_equal_five_and_five_in_a_new_process(run_env: Path, stories_file: Path, tmp_path: Path) -> None:
    """Bit for bit: weights, optimizer state, place in the data, metrics; with dropout and microbatches."""
    one, two = tmp_path / "one", tmp_path / "two"
    call(*train_flags(stories_file, one), cache=run_env)
    call(*train_flags(stories_file, two, **{"train.steps": 5}), cache=run_env)
    assert RunFolder(two).steps() == [5]
    said = call(*train_flags(stories_file, two), cache=run_env)
    assert "resuming at step 5 of 10" in said and "train.steps: 5 -> 10" in said
    assert metrics(one) == metrics(two)
    assert [row["step"] for row in metrics(one) if row["kind"] == "train"] == list(range(1, 11))
    (state_one, data_one), (state_two, data_two) = (checkpoint(run, stories_file) for run in (one, two))
    assert int(state_one.step) == int(state_two.step) == 10
    assert data_one == data_two
    leaves_one, leaves_two = jax.tree.leaves(state_one), jax.tree.leaves(state_two)
    assert len(leaves_one) == len(leaves_two) > 50
    for a, b in zip(leaves_one, leaves_two, strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))
    assert (one / "samples.txt").read_text() == (two / "samples.txt").read_text()


def test_kill_9_then_the_same_command_then_sample_and_eval(run_env: Path, stories_file: Path, tmp_path: Path) -> None:
    run = tmp_path / "a run \u00e9"  # spaces and letters beyond ASCII are fine
    command = train_flags(stories_file, run, **LONG)
    process = start(*command, cache=run_env)
    try:
        wait_for(run, lambda rows: rows and rows[-1]["step"] >= 50 and RunFolder(run).steps(), process)
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert process.returncode == -signal.SIGKILL
    killed_at, saved = read_rows(run / "metrics.jsonl")[-1]["step"], RunFolder(run).steps()
    assert saved and killed_at < 300
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 9999, "kind": "tr')  # what a kill in the middle of a write leaves

    said = call(*command, cache=run_env)
    assert int(re.search(r"resuming at step (\d+) of 300", said)[1]) in saved
    rows = read_rows(run / "metrics.jsonl")
    assert [row["step"] for row in rows if row["kind"] == "train"] == list(range(1, 301))
    assert [row["step"] for row in rows if row["kind"] == "eval"] == list(range(50, 301, 50))
    for name in ("samples.txt", "plots/loss.png", "report.md", "result.json", "tokenizer.model", "data.json"):
        assert (run / name).stat().st_size > 0, name

    row = json.loads((run / "result.json").read_text())
    assert {"name", "config_hash", "metrics", "device", "versions", "data_fingerprint", "tokenizer_sha256"} < set(row)
    assert row["metrics"]["valid_loss"] == rows[-1]["loss"] < row["metrics"]["baseline_uniform"]

    said = call("--mode=sample", "--workdir", run, "--prompt=once upon", "--num_samples=2", cache=run_env)
    assert said.count("once upon") == 2 and "2 of 2" in said
    again = call("--mode=sample", "--workdir", run, "--prompt=once upon", "--num_samples=2", cache=run_env)
    assert again == said

    call("--mode=eval", "--workdir", run, "--step=300", cache=run_env)
    evaluation = json.loads((run / "eval" / "valid.json").read_text())["metrics"]
    assert evaluation["valid_loss"] == rows[-1]["loss"]  # to the last digit
    assert evaluation["bits_per_byte"] == rows[-1]["bits_per_byte"]
    stories = [json.loads(line) for line in (run / "eval" / "valid_stories.jsonl").read_text().splitlines()]
    total = sum(story["loss"] * story["tokens"] for story in stories)
    assert total / sum(story["tokens"] for story in stories) == pytest.approx(rows[-1]["loss"], rel=1e-9)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_a_second_start_continues(
    run_env: Path, stories_file: Path, tmp_path: Path, number: signal.Signals
) -> None:
    run, knobs = tmp_path / "run", LONG | {"checkpoint.every": 100_000, "train.steps": 1000}
    process = start(*train_flags(stories_file, run, **knobs), cache=run_env)
    try:
        wait_for(run, lambda rows: rows and rows[-1]["step"] >= 20, process)
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 0, err
    assert "Traceback" not in out + err
    stopped = int(re.search(rf"stopped at step (\d+) by {number.name}", out)[1])
    assert RunFolder(run).steps() == [stopped] and 20 <= stopped < 1000
    assert not (run / "result.json").exists()
    said = call(*train_flags(stories_file, run, **knobs | {"train.steps": stopped + 2}), cache=run_env)
    assert "Resuming with a changed config: train.steps" in said and "flag parsing" not in said
    assert f"resuming at step {stopped} of {stopped + 2}" in said
    steps = [row["step"] for row in read_rows(run / "metrics.jsonl") if row["kind"] == "train"]
    assert steps == list(range(1, stopped + 3))


def test_eval_of_a_file_and_of_several_runs(run_env: Path, trained_run: Path, tmp_path: Path) -> None:
    runs = [tmp_path / "first", tmp_path / "second"]
    for run in runs:
        shutil.copytree(trained_run, run)
    stories = write_stories(tmp_path / "my own [stories].txt", 30, seed=7)
    said = call(
        *("--mode=eval", "--workdir", runs[0], "--workdir", runs[1], f"--data.path={stories}", "--step=5"),
        cache=run_env,
    )
    for run in runs:
        assert re.search(rf"{run.name}\s+│ 5 ", said), said
        (path,) = (run / "eval").glob("my own*.json")
        row = json.loads(path.read_text())
        stories_rows = path.with_name(f"{path.stem}_stories.jsonl").read_text().splitlines()
        assert len(stories_rows) == 30
        assert sum(json.loads(line)["bytes"] for line in stories_rows) == sum(
            len(text.encode()) for text in story_texts(30, seed=7)
        )
        assert row["metrics"]["step"] == 5
        assert f"{row['metrics']['valid_loss']:.4f}" in said


def test_a_copied_run_folder_samples_without_cache_and_data(trained_run: Path, tmp_path: Path) -> None:
    """Copy it to another machine and it samples: no cache, no story file; and sampling writes nothing into it."""
    copy = tmp_path / "copy"
    shutil.copytree(trained_run, copy)
    config = json.loads((copy / "config.json").read_text())
    config["config"]["data"] |= {"path": "/nowhere/stories.txt"}
    (copy / "config.json").write_text(json.dumps(config))
    before = listing(copy)
    said = call("--mode=sample", f"--workdir={copy}", "--prompt=", "--num_samples=1", cache=tmp_path / "cache")
    assert "1 of 1" in said
    assert listing(copy) == before


def test_bad_input_of_a_real_process_is_one_line(tmp_path: Path) -> None:
    process = start("--config=smoke", f"--workdir={tmp_path / 'run'}", "--config.train.stepz=5", cache=tmp_path)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 2
    assert out == "" and err.count("\n") == 1 and "did you mean train.steps" in err
    assert list(tmp_path.iterdir()) == []


def test_a_terminal_that_writes_ascii_only(trained_run: Path, run_env: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    said = call("--mode=sample", f"--workdir={trained_run}", "--prompt=caf\u00e9", "--num_samples=1", cache=run_env)
    assert "caf?" in said


def test_ctrl_c_while_it_compiles_exits_with_130(stories_file: Path, tmp_path: Path) -> None:
    """Nothing to save yet: one line, no crash of the threads at work, and the same folder can be used."""
    run = tmp_path / "run"
    process = start(*train_flags(stories_file, run), cache=tmp_path / "cache")
    try:
        deadline = time.monotonic() + 120
        while not (run / "checkpoints").exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130, err
    assert "Traceback" not in out + err and err.splitlines()[-1].startswith("mla_jax: interrupted")
