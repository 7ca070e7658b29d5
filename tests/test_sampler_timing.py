"""launch/sampler_timing.py: it times weights as the sampler holds them, experts too, and refuses with a sentence."""

import argparse
import importlib.util
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from mla_jax.bench.decode import random_variables
from mla_jax.errors import run_command
from mla_jax.model import serving
from mla_jax.model.backend import Backend

SCRIPT = Path(__file__).parents[1] / "launch" / "sampler_timing.py"


@pytest.fixture(scope="module")
def script() -> Any:
    spec = importlib.util.spec_from_file_location("sampler_timing", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def options(config: str, **more: Any) -> argparse.Namespace:
    given = {"shapes": "1x16", "vocab_size": 64, "cache_dtypes": "float32", "methods": "greedy", "steps": 32}
    return argparse.Namespace(config=config, repeats=2, **(given | more))


@pytest.mark.parametrize("config", ["mha_rope:xs", "moe_mla_rope:xs"])
def test_it_times_what_the_sampler_holds(config: str, script: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """It passed float32 variables as they are initialised, which no sampler decodes with, and no router bias."""
    seen = []

    def time_case(model: Any, variables: Any, *_: Any) -> list[float]:
        seen.append((model, variables))
        return [1.0]

    packing = Backend("bfloat16", "xla", decode_impl="pallas", interpret=True)
    monkeypatch.setattr(script.backend, "choose", lambda *_: packing)
    monkeypatch.setattr(script, "time_case", time_case)
    monkeypatch.setattr(script, "random_variables", lambda model: jax.eval_shape(lambda: random_variables(model)))
    assert [row["metrics"]["us_per_step"] for row in script.rows(options(config))] == [1.0]
    ((model, variables),) = seen
    assert serving.COLLECTION in variables and variables["params"]["embedding"].dtype == jnp.bfloat16
    assert ("router" in variables) == config.startswith("moe")


@pytest.mark.parametrize("config", ["mha_rope:xs", "moe_mla_rope:xs"])
def test_a_short_context_has_fewer_steps_and_a_row(config: str, script: Any) -> None:
    (row,) = script.rows(options(config))
    assert row["metrics"]["us_per_step"] > 0 and row["metrics"]["over_greedy"] == 1
    assert row["device"] and row["versions"]["jax"] and row["config_hash"]


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (["--shapes=1x"], "--shapes has '1x'; a shape is BATCHxCONTEXT, with a context of at least 10"),
        (["--methods=greedy,best"], "--methods has 'best', which is none of greedy"),
        (["--cache_dtypes=bfloat16,int4"], "--cache_dtypes has 'int4', which is none of bfloat16, float32, int8"),
        (["--repeats=0"], "--repeats is 0; it must be at least 1"),
        (["--steps=0"], "--steps is 0; it must be at least 1"),
        (["--config=mlaa"], "--config is 'mlaa'"),
    ],
)
def test_what_it_cannot_time_is_a_sentence(
    given: list[str], says: str, script: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(script.main, given) == 2
    assert capsys.readouterr().err.startswith(f"mla_jax: {says}")
