"""What the tests of Hugging Face interop share: golden models of transformers, and runs that were never trained."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tiny import random_params, reference_model

from mla_jax.config import Config
from mla_jax.data.tokenizer import Tokenizer
from mla_jax.files import write_text
from mla_jax.interop import tensor_files
from mla_jax.runs import Run, RunFolder

GOLDEN = Path(__file__).parent / "golden"
FIXTURES = sorted(path.stem.removeprefix("hf_") for path in GOLDEN.glob("hf_*.npz"))
FINGERPRINT = "0" * 64


@dataclasses.dataclass(frozen=True)
class Fixture:
    """config: the text of config.json; tensors by name; tokens [B, T]; logits [B, T, vocab] of transformers."""

    config: str
    tensors: dict[str, np.ndarray]
    tokens: np.ndarray
    logits: np.ndarray


def fixture(name: str) -> Fixture:
    with np.load(GOLDEN / f"hf_{name}.npz") as content:  # allow_pickle is off
        tensors = {key.removeprefix("tensor:"): content[key] for key in content if key.startswith("tensor:")}
        return Fixture(str(content["config"]), tensors, content["tokens"].astype(np.int32), content["logits"])


def untrained_run(path: Path, config: Config, tokenizer: Tokenizer, seed: int = 0) -> Run:
    """A Run with random weights and as much of a run folder as an export reads. config.model.vocab_size is kept."""
    path.mkdir()
    data = {"fingerprint": FINGERPRINT, "tokenizer_sha256": tokenizer.sha256}
    write_text(path / "data.json", json.dumps(data))
    model = reference_model(config)
    return Run(RunFolder(path), config, tokenizer, model, random_params(model, seed), random_bias(config, seed), 3)


def random_bias(config: Config, seed: int = 0) -> jax.Array | None:
    """A router bias that changes many choices: scores lie in 0..1. None without experts."""
    cfg = config.model
    if not cfg.n_moe_layers:
        return None
    noise = np.random.default_rng([seed, 1]).standard_normal((cfg.n_moe_layers, cfg.n_routed_experts))
    return jnp.asarray(0.3 * noise, jnp.float32)


def assert_trees_equal(left: Any, right: Any, path: str = "") -> None:
    """Same names, shapes, dtypes and bits."""
    if isinstance(left, dict) or isinstance(right, dict):
        assert set(left) == set(right), path
        for name in left:
            assert_trees_equal(left[name], right[name], f"{path}/{name}")
        return
    left, right = np.asarray(left), np.asarray(right)
    assert left.dtype == right.dtype and left.shape == right.shape, path
    assert left.tobytes() == right.tobytes(), path


def edit_json(path: Path, change: Callable[[dict], object]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def edit_tensors(path: Path, change: Callable[[dict], object]) -> None:
    """Rewrite a safetensors file with other tensors."""
    found = dict(tensor_files.read(path.parent))
    change(found)
    tensor_files.write(path, found, "float32")
