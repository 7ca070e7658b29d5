"""mla_jax.train.precompile: what it compiles is what the first step runs."""

import dataclasses
from pathlib import Path
from unittest import mock

import jax
import numpy as np
import pytest
from run_tools import small_config, write_stories

from mla_jax.config import Config, replace
from mla_jax.errors import UserError
from mla_jax.model.backend import LATER, Backend, choose
from mla_jax.model.initial import init_params
from mla_jax.model.transformer import Transformer
from mla_jax.train import loop, setup
from mla_jax.train import step as steps
from mla_jax.train.optim import make_optimizer
from mla_jax.train.precompile import Precompiler
from mla_jax.train.state import TrainState, init_state

COMPILE = "/jax/core/compile/"


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of events of tracing, lowering and compiling, as they come; a GPU's way on a CPU."""
    real = choose
    monkeypatch.setattr(
        "mla_jax.model.backend.choose", lambda *a, **k: dataclasses.replace(real(*a, **k), platform="gpu")
    )
    seen: list[str] = []

    def note(event: str, seconds: float, **about: object) -> None:
        if event.startswith(COMPILE):
            seen.append(f"{event.removeprefix(COMPILE)} {about.get('fun_name', '')}")

    jax.monitoring.register_event_duration_secs_listener(note)
    yield seen
    jax.monitoring.unregister_event_duration_listener(note)


def ready(config: Config, backend: Backend) -> tuple[TrainState, dict[str, np.ndarray], np.uint32]:
    """What a first step takes."""
    model, optimizer = Transformer(config.model, backend), make_optimizer(config.optim)
    state = init_state(model, optimizer, init_params(model, 0))
    tokens = np.ones((config.train.batch_size, config.train.seq_len + 1), np.int32)
    return state, {"tokens": tokens, "segment_ids": tokens}, np.uint32(0)


def test_the_first_step_only_runs_what_was_compiled_ahead(compiled: list[str], tmp_path: Path) -> None:
    config = small_config(write_stories(tmp_path / "stories.txt"), **{"model.vocab_size": 320})
    backend = dataclasses.replace(choose(config.model), platform="gpu")
    ahead = Precompiler(backend)
    ahead.start(config)
    arguments = ready(config, backend)
    step = ahead.train_step(config)
    assert any(name.endswith("train_step)") or name.endswith("train_step") for name in compiled)
    compiled.clear()
    _, metrics = step(*arguments)
    assert np.isfinite(metrics["loss"]) and compiled == []


def test_another_config_and_a_failed_compilation_have_no_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = small_config(write_stories(tmp_path / "stories.txt"), **{"model.vocab_size": 320})
    backend = dataclasses.replace(choose(config.model), platform="gpu")
    step = mock.MagicMock()
    monkeypatch.setattr(steps, "make_train_step", lambda *_: step)
    ahead = Precompiler(backend)
    assert ahead.train_step(config) is None  # not begun
    ahead.start(config)
    assert ahead.train_step(config) is step
    assert ahead.train_step(replace(config, **{"tokenizer.vocab_size": 300})) is None
    step.lower.side_effect = RuntimeError("no memory")
    failed = Precompiler(backend)
    failed.start(config)
    assert failed.train_step(config) is None


def test_fewer_pieces_than_asked_for_cost_a_compilation_once(compiled: list[str], tmp_path: Path) -> None:
    """Where data have to be prepared; what is cached says how many there are."""
    knobs = {"train.steps": 1, "train.eval_every": 1, "tokenizer.vocab_size": 4000, "model.vocab_size": 0}
    config = small_config(write_stories(tmp_path / "stories.txt"), **knobs, **{"data.cache_dir": str(tmp_path / "c")})
    for folder, times in (("first", 2), ("second", 1)):
        compiled.clear()
        assert loop.train(config, tmp_path / folder).row["metrics"]["step"] == 1
        assert sum("backend_compile" in name and "train_step" in name for name in compiled) == times


def test_a_run_compiles_its_step_once_and_learns_the_same(compiled: list[str], tmp_path: Path) -> None:
    """From nothing, going on, and again where it is finished, which compiles nothing."""
    config = small_config(write_stories(tmp_path / "stories.txt"), **{"train.steps": 2, "train.eval_every": 2})

    def steps_compiled() -> int:
        found = sum("backend_compile" in name and "train_step" in name for name in compiled)
        compiled.clear()
        return found

    row = loop.train(config, tmp_path / "run").row
    assert steps_compiled() == 1
    longer = replace(config, **{"train.steps": 4, "train.eval_every": 4})
    loop.train(longer, tmp_path / "run")
    assert steps_compiled() == 1
    loop.train(longer, tmp_path / "run")
    assert steps_compiled() == 0
    loop.train(replace(config, init_from=str(tmp_path / "run")), tmp_path / "from")
    assert steps_compiled() == 1
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Precompiler, "start", lambda *_: None)
        plain = loop.train(config, tmp_path / "plain").row
    assert plain["metrics"]["valid_loss"] == row["metrics"]["valid_loss"]


def test_it_begins_when_data_are_prepared_else_when_all_is_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = small_config(write_stories(tmp_path / "stories.txt"), **{"data.cache_dir": str(tmp_path / "cache")})
    begun: list[bool] = []
    monkeypatch.setattr(Precompiler, "start", lambda *_: begun.append((tmp_path / "cache").exists()))
    setup.open_run(config, tmp_path / "run")
    assert begun == [False, True]
    begun.clear()
    setup.open_run(config, tmp_path / "run")
    assert begun == [True]
    begun.clear()
    with pytest.raises(UserError):
        setup.open_run(replace(config, **{"sample.prompts": ("long " * 500,)}), tmp_path / "run")
    assert begun == []


def test_training_leaves_the_kernels_of_decode_for_its_samples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run whose device would need the self-check trains without it, and draws its samples with what it says."""
    config = small_config(write_stories(tmp_path / "stories.txt"), **{"train.steps": 2, "train.eval_every": 2})
    real, asked = choose(config.model), []

    def described(cfg: object, device: object = None, decodes: bool = True) -> Backend:
        asked.append(decodes)
        return real if decodes else dataclasses.replace(real, decode_reason=LATER)

    monkeypatch.setattr("mla_jax.model.backend.choose", described)
    loop.train(config, tmp_path / "run")
    assert asked == [False, True]
