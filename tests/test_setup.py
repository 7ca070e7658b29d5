"""mla_jax.train.setup: everything is checked before anything is written, and where a run starts from."""

import json
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from run_tools import listing, small_config, write_stories
from tiny import random_params

from mla_jax import runs
from mla_jax.data.pipeline import train_iterator
from mla_jax.errors import UserError
from mla_jax.runs import RunFolder
from mla_jax.train.checkpoint import Checkpoints
from mla_jax.train.optim import make_optimizer
from mla_jax.train.setup import Setup, open_run, starting_state, write_run_files
from mla_jax.train.state import TrainState

pytest_plugins = ["run_fixtures"]
pytestmark = pytest.mark.usefixtures("run_env")


@pytest.fixture
def copy(trained_run: Path, tmp_path: Path) -> Path:
    shutil.copytree(trained_run, tmp_path / "copy")
    return tmp_path / "copy"


def start(setup: Setup) -> TrainState:
    data = train_iterator(setup.prepared, setup.config)
    with Checkpoints(setup.folder, setup.config.checkpoint) as checkpoints:
        return starting_state(setup, make_optimizer(setup.config.optim), checkpoints, data)


def assert_same(found: Any, wanted: Any) -> None:
    jax.tree.map(np.testing.assert_array_equal, found, wanted)


def test_opening_writes_nothing(stories_file: Path, tmp_path: Path) -> None:
    setup = open_run(small_config(stories_file), tmp_path / "new")
    assert not setup.resumes and setup.changes == []
    assert list(tmp_path.iterdir()) == []
    assert setup.config.model.vocab_size == setup.config.tokenizer.vocab_size == setup.prepared.tokenizer.vocab_size
    assert setup.baselines["unigram"] < setup.baselines["uniform"]


def test_openings_are_first_words_of_held_out_stories(stories_file: Path, tmp_path: Path) -> None:
    setup = open_run(small_config(stories_file), tmp_path / "new")
    text = stories_file.read_text()
    assert len(setup.openings) == 16
    for opening in setup.openings:
        assert opening in text and 1 <= len(opening.split()) <= 6


def test_openings_leave_room_where_words_are_not_spaced(tmp_path: Path) -> None:
    stories = tmp_path / "s.txt"
    stories.write_text(
        "\n<|endoftext|>\n".join(
            f" \u4ece\u524d{i}\u6709\u4e00\u53ea" + "\u4ece\u524d\u6709\u4e00\u53ea" * 60 for i in range(60)
        ),
        "utf-8",
    )
    setup = open_run(small_config(stories), tmp_path / "new")
    for opening in setup.openings:
        assert opening and "\ufffd" not in opening
        assert len(setup.prepared.tokenizer.encode(opening)) <= setup.config.model.max_len // 4 + 1


@pytest.mark.parametrize("size", [300, 400, 8192])
def test_another_vocabulary_is_refused_on_resumption(copy: Path, stories_file: Path, size: int) -> None:
    with pytest.raises(UserError, match=rf"tokenizer.vocab_size is {size}, but .* was learned with 320"):
        open_run(small_config(stories_file, **{"tokenizer.vocab_size": size}), copy)
    # The number of pieces in config.json is as good as the ceiling; what runs of before did not note is not held up.
    edited = json.loads((copy / "data.json").read_text())
    del edited["stats"]["vocab_ceiling"]
    (copy / "data.json").write_text(json.dumps(edited))
    if size > edited["stats"]["vocab_size"]:
        assert open_run(small_config(stories_file, **{"tokenizer.vocab_size": size}), copy).resumes


def test_a_changed_schedule_is_allowed_and_told(copy: Path, stories_file: Path) -> None:
    config = small_config(stories_file, **{"train.steps": 30, "optim.learning_rate": 0.5, "optim.decay_steps": 90})
    setup = open_run(config, copy)
    assert setup.resumes
    assert set(setup.changes) == {
        "train.steps: 10 -> 30",
        "optim.learning_rate: 0.01 -> 0.5",
        "optim.decay_steps: 50 -> 90",
    }


def test_a_changed_architecture_is_refused(copy: Path, stories_file: Path) -> None:
    before = listing(copy)
    with pytest.raises(UserError, match=r"model.n_layers \(was 2, now 3\), model.qk_norm \(was False, now True\)"):
        open_run(small_config(stories_file, **{"model.n_layers": 3, "model.qk_norm": True}), copy)
    assert listing(copy) == before


def test_other_data_is_refused_and_moved_data_is_not(copy: Path, stories_file: Path, tmp_path: Path) -> None:
    other = write_stories(tmp_path / "other.txt", seed=5)
    with pytest.raises(UserError, match=r"trained on other data \(fingerprint .*--config.init_from=.*copy"):
        open_run(small_config(other), copy)
    moved = Path(shutil.copy(stories_file, tmp_path / "moved.txt"))
    assert open_run(small_config(moved), copy).changes == [f"data.path: {str(stories_file)!r} -> {str(moved)!r}"]


def test_resuming_starts_from_the_newest_checkpoint(copy: Path, stories_file: Path) -> None:
    state = start(open_run(small_config(stories_file, **{"train.steps": 30}), copy))
    assert int(state.step) == 10
    assert_same(state.params, runs.load_run(copy, 10).params)


def test_a_fresh_start_draws_weights_from_the_seed(
    stories_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Drawn by numpy here: compiling the model's own initialisation takes seconds.
    monkeypatch.setattr("mla_jax.train.setup.init_params", random_params)
    setup = open_run(small_config(stories_file, **{"train.seed": 9}), tmp_path / "new")
    state = start(setup)
    assert int(state.step) == 0
    assert_same(state.params, random_params(setup.model, seed=9))


def test_init_from_takes_weights_and_tokenizer_only(trained_run: Path, tmp_path: Path) -> None:
    stories = write_stories(tmp_path / "other.txt", seed=5)
    config = small_config(stories, **{"init_from": str(trained_run), "train.seed": 9})
    setup = open_run(config, tmp_path / "new")
    state = start(setup)
    source = runs.load_run(trained_run)
    assert setup.prepared.tokenizer.sha256 == source.tokenizer.sha256
    assert_same(state.params, source.params)
    assert int(state.step) == 0
    assert all(not np.any(leaf) for leaf in jax.tree.leaves(state.opt_state))


@pytest.mark.parametrize(("size", "said"), [(320, 0), (500, 1), (310, 1)])
def test_init_from_says_that_its_tokenizer_is_used(
    trained_run: Path, stories_file: Path, tmp_path: Path, size: int, said: int, caplog: pytest.LogCaptureFixture
) -> None:
    pieces = runs.read_tokenizer(RunFolder(trained_run)).vocab_size
    config = small_config(stories_file, **{"init_from": str(trained_run), "tokenizer.vocab_size": size})
    assert open_run(config, tmp_path / "new").config.tokenizer.vocab_size == pieces
    notes = [r.getMessage() for r in caplog.records if "tokenizer.vocab_size" in r.getMessage()]
    assert len(notes) == said
    assert all(f"is {size} and has no effect" in note and f"of {pieces} pieces." in note for note in notes)


def test_init_from_other_shapes_names_them(trained_run: Path, stories_file: Path, tmp_path: Path) -> None:
    config = small_config(stories_file, **{"init_from": str(trained_run), "model.kv_lora_rank": 4})
    with pytest.raises(UserError, match=r"init_from is .*w_dkv \(16, 8\) instead of \(16, 4\)"):
        open_run(config, tmp_path / "new")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (shutil.rmtree, "no such folder"),
        (lambda run: (run / "config.json").unlink(), "no config.json"),
        (lambda run: shutil.rmtree(run / "checkpoints"), "no finished checkpoint"),
        (lambda run: (run / "tokenizer.model").unlink(), "tokenizer.model"),
    ],
)
def test_init_from_a_bad_run_folder(copy: Path, stories_file: Path, tmp_path: Path, damage: Any, words: str) -> None:
    damage(copy)
    with pytest.raises(UserError, match=words) as error:
        open_run(small_config(stories_file, init_from=str(copy)), tmp_path / "new")
    assert "--workdir is" not in str(error.value)
    assert not (tmp_path / "new").exists()


def test_what_a_run_without_checkpoint_left_is_replaced(stories_file: Path, tmp_path: Path) -> None:
    """Killed before its first checkpoint, then started with other data: the old tokenizer must not stay."""
    other = write_stories(tmp_path / "other.txt", seed=5)
    folder = RunFolder(tmp_path / "run")
    folder.path.mkdir()
    write_run_files(open_run(small_config(other), folder.path))
    setup = open_run(small_config(stories_file), folder.path)
    assert not setup.resumes
    write_run_files(setup)
    assert runs.read_tokenizer(folder).sha256 == setup.prepared.tokenizer.sha256
    assert json.loads(folder.data.read_text())["fingerprint"] == setup.prepared.fingerprint


def test_a_start_that_was_killed_before_its_config_is_begun_again(
    copy: Path, stories_file: Path, tmp_path: Path
) -> None:
    """config.json is written last: whatever a kill before it left, the same command works again."""
    config, run = small_config(stories_file), tmp_path / "run"
    with runs.lock(RunFolder(run)):
        pass
    (run / "checkpoints").mkdir()
    assert not open_run(config, run).resumes
    for name in ("tokenizer.model", "data.json"):
        (run / name).write_text("cut sh")
        setup = open_run(config, run)
    write_run_files(setup)
    assert runs.read_tokenizer(RunFolder(run)).sha256 == setup.prepared.tokenizer.sha256
    # Not so where no training was, where something else lies, or where finished checkpoints lost their config.
    (run / "config.json").unlink()
    (run / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="notes.txt"):
        open_run(config, run)
    (run / "notes.txt").unlink()
    (run / ".lock").unlink()
    with pytest.raises(UserError, match="holds other files"):
        open_run(config, run)
    bare = tmp_path / "bare"
    shutil.copytree(copy / "checkpoints", bare / "checkpoints")
    with runs.lock(RunFolder(bare)):
        pass
    with pytest.raises(UserError, match=r"holds other files \(checkpoints\)"):
        open_run(config, bare)


def test_a_prompt_without_room_is_refused_before_training(stories_file: Path, tmp_path: Path) -> None:
    config = small_config(stories_file, **{"sample.prompts": ("fine", "the little fox " * 40)})
    with pytest.raises(UserError, match=r"sample.prompts has 'the little fox .*model.max_len is 64"):
        open_run(config, tmp_path / "new")
