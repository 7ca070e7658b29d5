"""mla_jax.world_trial and launch/gpu_world.sh: the 5-gram's answers, samples ranked by step, the table's verdict."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from mla_jax import world_trial
from mla_jax.errors import UserError
from mla_jax.runs import load_run
from mla_jax.world import stories

pytest_plugins = ["run_fixtures"]


def asked(accuracy: float, kind: str = "all", distance: str = ">=50") -> dict:
    return {"kind": kind, "distance": distance, "n": 9, "accuracy": accuracy, "probability": 0.1, "chance": 0.2}


def facts(whole: float, cut: float) -> dict:
    near = asked(0.9, distance="000-019")  # not what the lead is measured in
    metrics = {"questions": [near, asked(whole)], "questions_20_words": [near, asked(cut)], "step": 8}
    return {"name": "run", "device": "cpu", "metrics": metrics}


def ranks(*scores: float) -> list[dict]:
    zero = dict.fromkeys(("well_formed", "unparsed", "contradicting", "resolved", "repetition", "standard_error"), 0.0)
    return [{"metrics": {"step": 2**i, "samples": 5, "score": s} | zero} for i, s in enumerate(scores)]


@pytest.mark.parametrize(
    ("whole", "cut", "short", "scores", "good", "says"),
    [
        (0.9, 0.6, 0.5, (0.0, 0.1, 0.9), True, "by 30.0%: as asked"),
        (0.9, 0.5, 0.75, (0.0, 0.1, 0.9), False, "by 15.0%: less than the 20% asked for"),
        (0.9, 0.75, 0.5, (0.0, 0.1, 0.9), False, "by 15.0%"),
        (0.9, 0.6, 0.5, (0.1, 0.1, 0.9), False, "not ranked in order"),
        (0.9, 0.6, 0.5, (0.0, 0.9, 0.8), False, "not ranked in order"),
    ],
)
def test_the_verdict_follows_the_figures(whole, cut, short, scores, good: bool, says: str) -> None:
    near = asked(0.9, distance="000-019")
    ngram = {"questions": [near, asked(short)], "train": 100}
    text, found = world_trial.table(facts(whole, cut), ngram, ranks(*scores))
    assert found == good and says in text
    assert f"| all | 9 | {whole:.3f} | {cut:.3f} | {short:.3f} | 0.200 |" in text and "000-019" not in text


def test_no_far_question_is_a_sentence() -> None:
    with pytest.raises(UserError, match="50 words away"):
        world_trial.far([asked(0.5, distance="020-049")])


def test_the_ngram_answers_what_the_model_is_asked(tmp_path: Path) -> None:
    assert world_trial.main(["ngram", str(tmp_path), "--stories", "5", "--train", "50"]) == 0
    answers = json.loads((tmp_path / "ngram.json").read_text())
    row = world_trial.far(answers["questions"])
    assert row["n"] > 5 and 0 <= row["accuracy"] < 0.7 and answers["train"] == 50


def test_samples_are_ranked_by_step(trained_run: Path, run_env: Path, tmp_path: Path, monkeypatch) -> None:
    run, sampled = Path(shutil.copytree(trained_run, tmp_path / "run")), []
    good = [row["text"] for row in stories(4, 0, "valid")]

    def sample(model, n_samples, max_new_tokens):
        sampled.append(model)
        return ["xyz zyx ."] * n_samples if model.step < 10 else good[:n_samples]

    monkeypatch.setattr(world_trial, "_sample", sample)
    assert world_trial.main(["rank", str(tmp_path), str(run), "--steps", "0", "5", "10", "--samples", "4"]) == 0
    rows = json.loads((tmp_path / "ranks.json").read_text())
    assert [row["metrics"]["step"] for row in rows] == [0, 5, 10]
    assert [round(row["metrics"]["score"], 3) for row in rows] == [0, 0, 1]
    written = [json.loads(line) for line in (tmp_path / "stories_step10.jsonl").read_text().splitlines()]
    assert [story["text"] for story in written] == good and written[0]["source"] == "model"
    # Step 0 is what the run began with, not what it became.
    params = [jax.tree.leaves(model.params) for model in sampled]
    assert any(not np.array_equal(a, b) for a, b in zip(params[0], params[1], strict=True))
    again = world_trial._untrained(load_run(run))
    assert all(np.array_equal(a, b) for a, b in zip(params[0], jax.tree.leaves(again.params), strict=True))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_launch_script_runs_from_end_to_end(tmp_path: Path) -> None:
    environment = os.environ | {"PYTHON": sys.executable, "WORLD_CONFIG": "smoke", "WORLD_STEPS": "2 4"}
    environment |= {"WORLD_STORIES": "12", "WORLD_TRAIN": "60", "WORLD_TOKENS": "20"}
    script = Path(__file__).resolve().parents[1] / "launch" / "gpu_world.sh"
    knobs = ["--config.data.stories=200", "--config.data.valid_stories=20", "--config.train.batch_size=8"]
    out = tmp_path / "out"
    done = subprocess.run(
        ["bash", str(script), str(out), *knobs], env=environment, capture_output=True, text=True, timeout=800
    )
    assert done.returncode == 1, done.stderr  # four steps teach nothing
    text = (out / "world.md").read_text()
    assert "| all |" in text and "| 0 | 12 |" in text and "| 4 | 12 |" in text
    assert len((out / "stories_step2.jsonl").read_text().splitlines()) == 12
