"""A plugin (`pytest_plugins = ["hf_fixtures"]`): one untrained run and its export."""

from pathlib import Path

import pytest
from hf_tools import untrained_run
from run_tools import story_texts
from tiny import grid_config

from mla_jax.data.tokenizer import Tokenizer, train_tokenizer
from mla_jax.interop import hf
from mla_jax.runs import Run


@pytest.fixture(scope="session")
def hf_tokenizer() -> Tokenizer:
    return Tokenizer(train_tokenizer(story_texts(50), 330))


@pytest.fixture(scope="session")
def hf_run(hf_tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Run:
    config = grid_config("joint-decoupled-q_lora-norm_rms", **{"model.vocab_size": hf_tokenizer.vocab_size})
    return untrained_run(tmp_path_factory.mktemp("runs") / "tiny_mla", config, hf_tokenizer)


@pytest.fixture(scope="session")
def exported(hf_run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Not to be changed: copy it."""
    return hf.export(hf_run, tmp_path_factory.mktemp("exports") / "tiny_mla")
