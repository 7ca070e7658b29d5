"""Bad steps in the training loop: stop, skip, roll back; bounds on loss and gradient; the end of rolling back."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from run_tools import small_config

from mla_jax import compile_cache
from mla_jax.config import replace
from mla_jax.rows import read_rows
from mla_jax.runs import RunFolder, load_run
from mla_jax.train import loop
from mla_jax.train import step as steps
from mla_jax.train.result import counted_so_far
from mla_jax.train.rollback import MAX_ROLLBACKS, NonFiniteLoss, Rollbacks

pytest_plugins = ["run_fixtures"]


@pytest.fixture(autouse=True)
def compiled_once(run_env: Path) -> Iterator[None]:
    """Programs come from the session's cache: each of these tests trains."""
    compile_cache.enable()
    yield
    jax.config.update("jax_compilation_cache_dir", None)


KNOBS = {"train.steps": 12, "checkpoint.every": 3, "train.eval_every": 6}


def poison(monkeypatch: pytest.MonkeyPatch, calls: set[int], value: float = float("nan")) -> list[np.ndarray]:
    """From now on the gradient of the n-th batch that is trained on becomes `value`, for n in `calls` (from 1).

    Returns the list that the batches are appended to as they come.
    """
    batches: list[np.ndarray] = []
    real = steps.make_train_step

    def make(*arguments: Any) -> Any:
        train_step = real(*arguments)

        def step(state: Any, batch: Any, *seed: Any) -> Any:
            batches.append(np.asarray(batch["tokens"]))
            if len(batches) not in calls:
                return train_step(state, batch, *seed)
            number = int(state.step)
            broken = state.replace(params=jax.tree.map(lambda a: jnp.full_like(a, value), state.params))
            after, metrics = train_step(broken, batch, *seed)
            return after.replace(step=jnp.int32(number + 1)), metrics

        return step

    monkeypatch.setattr(steps, "make_train_step", make)
    return batches


def train_rows(run: Path) -> list[int]:
    return [row["step"] for row in read_rows(run / "metrics.jsonl") if row["kind"] == "train"]


def test_rollback_goes_on_from_the_checkpoint_without_the_batches_in_between(
    run_env: Path, stories_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    batches = poison(monkeypatch, {8})
    run = tmp_path / "run"
    result = loop.train(small_config(stories_file, **KNOBS, **{"train.on_nonfinite": "rollback"}), run)
    assert result.row is not None and np.isfinite(result.row["metrics"]["valid_loss"])
    assert "step 8 was bad (loss nan, gradient norm nan): rolled back to step 6" in capsys.readouterr().out
    assert train_rows(run) == list(range(1, 13))
    # 6 good, the bad one, one that was on its way (metrics come a step late), and steps 7-12 on other data
    assert len(batches) in (6 + 2 + 6, 6 + 3 + 6)
    assert len({batch.tobytes() for batch in batches}) == len(batches)
    assert read_rows(run / "metrics.jsonl")[-1]["step"] == 12
    assert all(np.isfinite(a).all() for a in jax.tree.leaves(load_run(run).params))


def test_a_resumed_run_goes_on_counting_what_was_bad(
    run_env: Path, stories_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, knobs = tmp_path / "run", {**KNOBS, "train.on_nonfinite": "rollback"}
    with monkeypatch.context() as patched:
        poison(patched, {5})
        loop.train(small_config(stories_file, **knobs | {"train.steps": 6}), run)
    loop.train(small_config(stories_file, **knobs), run)
    counts = {row["step"]: row["rollbacks"] for row in read_rows(run / "metrics.jsonl") if row["kind"] == "train"}
    assert counts == dict.fromkeys(range(1, 4), 0) | dict.fromkeys(range(4, 13), 1)
    assert counted_so_far(RunFolder(run), 3) == {"skipped": 0, "rollbacks": 0}
    assert counted_so_far(RunFolder(run), 7) == {"skipped": 0, "rollbacks": 1}
    assert counted_so_far(RunFolder(tmp_path / "absent"), 7) == {"skipped": 0, "rollbacks": 0}


def test_a_first_step_that_is_logged_has_a_speed(run_env: Path, stories_file: Path, tmp_path: Path) -> None:
    """The clock begins anew after the first step, which compiles, but not between a step and its own line."""
    config = small_config(stories_file, **{"train.log_every": 5, "checkpoint.every": 4, "train.steps": 4})
    run = tmp_path / "run"
    assert loop.train(config, run).row["metrics"]["tokens_per_s"] > 0
    result = loop.train(replace(config, **{"train.steps": 5}), run)  # one step more, and it is due
    assert result.row["metrics"]["tokens_per_s"] > 0
    rows = [row for row in read_rows(run / "metrics.jsonl") if row["kind"] == "train"]
    assert [row["step"] for row in rows] == [4, 5] and all(row["tokens_per_s"] > 0 for row in rows)


def test_skipped_steps_are_counted_on(run_env: Path, stories_file: Path, tmp_path: Path) -> None:
    """All are, since no gradient is as small as that."""
    run, knobs = tmp_path / "run", {"train.on_nonfinite": "skip", "train.bad_grad_norm": 1e-9, "checkpoint.every": 2}
    loop.train(small_config(stories_file, **knobs, **{"train.steps": 2}), run)
    loop.train(small_config(stories_file, **knobs, **{"train.steps": 4}), run)
    counts = [row["skipped"] for row in read_rows(run / "metrics.jsonl") if row["kind"] == "train"]
    assert counts == [1, 2, 3, 4]
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 4, "kind": "train", "skipped": None, "rollbacks": "x"}) + "\n")
    assert counted_so_far(RunFolder(run), 3) == {"skipped": 3, "rollbacks": 0}


def test_a_run_that_was_killed_before_its_result_has_a_speed(
    run_env: Path, stories_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next process makes no step: the log knows how fast it was."""
    config, run = small_config(stories_file, **{"checkpoint.every": 5}), tmp_path / "run"
    with monkeypatch.context() as patched:
        patched.setattr(loop._Training, "_finish", lambda self: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            loop.train(config, run)
    assert not RunFolder(run).result.exists()
    assert loop.train(config, run).row["metrics"]["tokens_per_s"] > 0


def test_a_rollback_that_does_not_help_ends(
    run_env: Path, stories_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches = poison(monkeypatch, set(range(5, 1000)))
    config = small_config(stories_file, **KNOBS, **{"train.on_nonfinite": "rollback"})
    with pytest.raises(NonFiniteLoss, match=rf"rolled back to step 3 {MAX_ROLLBACKS} times already; .*step 3\."):
        loop.train(config, tmp_path / "run")
    assert len(batches) < 4 + 3 * (MAX_ROLLBACKS + 1)
    assert RunFolder(tmp_path / "run").steps() == [3]


def test_rollback_without_a_checkpoint_stops(
    run_env: Path, stories_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison(monkeypatch, {2})
    config = small_config(stories_file, **KNOBS, **{"train.on_nonfinite": "rollback"})
    with pytest.raises(NonFiniteLoss, match="step 2: .*nothing to roll back to; there is no checkpoint yet"):
        loop.train(config, tmp_path / "run")


def test_a_bound_makes_a_finite_step_bad(run_env: Path, stories_file: Path, tmp_path: Path) -> None:
    config = small_config(stories_file, **KNOBS, **{"train.bad_loss": 20.0, "train.bad_grad_norm": 1e-3})
    with pytest.raises(NonFiniteLoss, match=r"step 1: loss 5\..*\(bounds: bad_loss=20.0, bad_grad_norm=0.001\)"):
        loop.train(config, tmp_path / "run")


def test_rollbacks_are_counted_per_checkpoint() -> None:
    rollbacks = Rollbacks()
    assert "nothing to roll back to" in rollbacks.allow(None)
    assert [rollbacks.allow(10) for _ in range(MAX_ROLLBACKS)] == [""] * MAX_ROLLBACKS
    assert rollbacks.allow(10)
    assert rollbacks.allow(20) == "" and rollbacks.total == MAX_ROLLBACKS + 1
