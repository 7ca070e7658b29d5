"""sample_mode, and the other modes that read a run: what is said beside the result."""

import shutil
from pathlib import Path

import pytest
import rich.console

from mla_jax import eval_mode, runs
from mla_jax.errors import UserError
from mla_jax.interop import export_mode
from mla_jax.sample import sample_mode

pytest_plugins = ["run_fixtures"]


def unfinished(trained_run: Path, copy: Path) -> Path:
    """A copy of the run as it was at step 5 of 10."""
    shutil.copytree(trained_run, copy)
    shutil.rmtree(copy / "checkpoints" / "10")
    (copy / "result.json").unlink()
    return copy


def said(run: Path, step: int | None = None) -> str:
    console = rich.console.Console(record=True, width=200)
    sample_mode.run(str(run), {"prompts": ("Once",), "num_samples": 1, "max_new_tokens": 2}, step, console)
    return console.export_text()


def test_a_run_that_is_still_trained_says_whose_weights_wrote(trained_run: Path, run_env: Path, tmp_path: Path) -> None:
    assert "weights of" not in said(trained_run)  # finished: its last
    of_five = said(trained_run, step=5)
    assert "weights of step 5 of 10" in of_five and "not finished" not in of_five
    training = unfinished(trained_run, tmp_path / "run")
    assert not runs.RunFolder(training).imported
    assert f"weights of step 5 of 10 of {training}, which is not finished" in said(training)


def test_eval_and_export_say_it_too(trained_run: Path, run_env: Path, tmp_path: Path) -> None:
    training = unfinished(trained_run, tmp_path / "run")
    whose = f"weights of step 5 of 10 of {training}, which is not finished\n"
    console = rich.console.Console(record=True, width=200)
    finished = Path(shutil.copytree(trained_run, tmp_path / "finished"))
    eval_mode.run([str(finished), str(training)], None, None, 0, console)
    said = console.export_text()
    assert said.startswith(whose) and said.count("weights of") == 1
    for run, says in ((finished, ""), (training, whose)):
        export_mode.run(str(run), str(tmp_path / f"{run.name}_hf"), None, None, console)
        said = console.export_text()
        assert said.startswith(f"{says}exported    ") and said.count("weights of") == bool(says)


def test_without_max_new_tokens_a_long_prompt_gets_what_fits(trained_run: Path, run_env: Path) -> None:
    run = runs.load_run(trained_run)
    room = run.config.model.max_len
    word = run.tokenizer.encode(" Once")
    prompt = " Once" * ((room - 3) // len(word))
    assert room - run.config.sample.max_new_tokens < len(run.tokenizer.encode(prompt)) < room
    console = rich.console.Console(record=True, width=200)
    assert sample_mode.run(str(trained_run), {"prompts": (prompt,), "num_samples": 1}, None, console)
    with pytest.raises(UserError, match="max_new_tokens"):
        given = {"prompts": (prompt,), "num_samples": 1, "max_new_tokens": run.config.sample.max_new_tokens}
        sample_mode.run(str(trained_run), given, None, console)
