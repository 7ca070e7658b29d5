"""mla_jax.train.precompile: what it compiles is what the first step looks for."""

import dataclasses
from pathlib import Path

import jax
import numpy as np
import pytest
from run_tools import small_config, write_stories

from mla_jax.model.backend import LATER, Backend, choose
from mla_jax.model.initial import init_params
from mla_jax.model.transformer import Transformer
from mla_jax.train import loop, setup
from mla_jax.train import step as steps
from mla_jax.train.optim import make_optimizer
from mla_jax.train.precompile import Precompiler
from mla_jax.train.state import init_state

HIT = "/jax/compilation_cache/cache_hits"


@pytest.fixture
def persistent_cache(tmp_path: Path):
    """An empty one that keeps every program."""
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = {name: getattr(jax.config, name) for name in names}
    from jax.experimental.compilation_cache import compilation_cache

    compilation_cache.reset_cache()
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "compiled"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    yield
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


def test_the_first_step_finds_what_was_compiled_ahead(persistent_cache: None, tmp_path: Path) -> None:
    config = small_config(write_stories(tmp_path / "stories.txt"), **{"model.vocab_size": 320})
    backend = dataclasses.replace(choose(config.model), platform="gpu")  # on a CPU nothing is compiled ahead
    with Precompiler(config, backend, 320) as precompiler:
        precompiler.start()
    model, optimizer = Transformer(config.model, backend), make_optimizer(config.optim)
    state = init_state(model, optimizer, init_params(model, 0))
    tokens = np.ones((config.train.batch_size, config.train.seq_len + 1), np.int32)
    hits: list[str] = []
    jax.monitoring.register_event_listener(lambda event, **_: hits.append(event))
    steps.make_train_step(model, optimizer, config)(state, {"tokens": tokens, "segment_ids": tokens}, np.uint32(0))
    assert HIT in hits


def test_it_begins_when_data_are_prepared_and_not_when_they_are_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = small_config(write_stories(tmp_path / "stories.txt"), **{"data.cache_dir": str(tmp_path / "cache")})
    begun: list[int] = []
    monkeypatch.setattr(Precompiler, "start", lambda self: begun.append(self._pieces))
    setup.open_run(config, tmp_path / "run")
    assert begun == [320]
    setup.open_run(config, tmp_path / "run")
    assert begun == [320]


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
