"""Made-up studies and rows for tests of the study: no training."""

import json
from collections.abc import Callable
from typing import Any

from mla_jax import accounting
from mla_jax import config as config_lib
from mla_jax.study import declare, grid
from mla_jax.study.grid import Study
from mla_jax.study.plan import Task, plan
from mla_jax.study.rows import Rows, key_of_row

TINY = {
    "model.n_layers": 2,
    "model.d_model": 32,
    "model.n_heads": 4,
    "model.max_len": 64,
    "train.seq_len": 32,
    "train.steps": 10,
    "train.batch_size": 4,
    "train.eval_every": 5,
    "train.tensorboard": False,
    "tokenizer.vocab_size": 320,
    "data.stories": 50,
    "data.valid_stories": 10,
    "sample.max_new_tokens": 8,
}
PER_HEAD = {"model.position": "rope", "model.latent": "per_head", "model.rope_placement": "decompressed"}


def declared(rates: tuple[float, ...] = (1e-3, 2e-3, 4e-3), seeds: tuple[int, ...] = (0, 1, 2), **settings: Any):
    """The ConfigDict of a study with two headline points and one of the grid."""
    c = declare.new("made_up", "A made-up study", **settings)
    declare.tier(c, "headline", "xs", TINY, learning_rates=rates, lengths=(1, 2), fact_stories=2)
    declare.tier(c, "grid", "xs", TINY | {"train.steps": 4})
    declare.point(c, "mha", "mha", "headline", {}, seeds, 1)
    declare.point(c, "per_head_rope_r2", "mla_rope", "headline", PER_HEAD, seeds, 1)
    declare.point(c, "s_mha", "mha", "grid", {}, priority=2)
    return c


def study(**settings: Any) -> Study:
    return grid.from_config_dict(declared(**settings))


def claims_study_dict(**settings: Any):
    """Every point that paper A's measured claims ask for, at a tiny size."""
    c = declared(rates=(), papers=("A",), **settings)
    for name, config, knobs in (
        ("mha_rope", "mha_rope", {}),
        ("per_head_learned_r2", "mla", {"model.latent": "per_head", "model.position": "learned"}),
        *(
            (f"per_head_rope_r{p}", "mla_rope", PER_HEAD | {"model.kv_lora_rank": rank})
            for p, rank in ((4, 3), (8, 2), (16, 1), (32, 5))
        ),
    ):
        declare.point(c, name, config, "headline", knobs, (0, 1, 2))
    return c


def claims_study(**settings: Any) -> Study:
    return grid.from_config_dict(claims_study_dict(**settings))


PAPER_SAYS = {  # best losses by which paper A's claims hold, all but A5
    "mha": 2.0, "mha_rope": 1.98, "per_head_learned_r2": 2.08, "per_head_rope_r2": 2.006, "per_head_rope_r4": 2.088,
    "per_head_rope_r8": 2.206, "per_head_rope_r16": 2.3, "per_head_rope_r32": 2.6, "s_mha": 3.0,
}  # fmt: skip


def row(task: Task, loss: float = 2.0, status: str = "done", device: str = "cpu x86_64", **more: Any) -> dict[str, Any]:
    """A row as the runner writes it."""
    config = config_lib.replace(task.config, **{"model.vocab_size": 320})
    numbers = range(10)
    return {
        "name": task.point.name,
        "config_hash": config.hash,
        "metrics": {"best_valid_loss": loss, "best_step": 5, "valid_loss": loss, "tokens_per_s": 1000.0},
        "device": device,
        "versions": {"jax": "0"},
        "data_fingerprint": "f" * 64,
        "tokenizer_sha256": "t" * 64,
        "command": "python -m mla_jax.main --mode study",
        "time": "2026-01-01T00:00:00+00:00",
        "study": {
            "name": "made_up",
            "tier": task.point.tier,
            "seed": task.seed,
            "learning_rate": task.config.optim.learning_rate,
            "status": status,
            "resumed": False,
            "vocab_size": 320,
            "flops_per_token": accounting.flops_per_token(config.model, 32),
            "training_flops": 1e9,
            "params": accounting.params(config.model),
            "kv_numbers": accounting.kv_numbers(config.model),
            "seconds": 60.0,
            "sharing": 1,
        },
        "config": json.loads(config_lib.dumps(task.config)),
        "curve": {"train": [[1, loss + 1], [10, loss]], "eval": [[5, loss + 0.1], [10, loss]]},
        "by_position": {"1": [[0, loss + 0.5], [16, loss]], "2": [[0, loss + 0.5], [16, loss], [32, loss], [48, loss]]},
        "story_losses": [round(loss + 0.01 * n, 4) for n in numbers],
        "facts": [
            {"kind": "all", "distance": d, "n": 20, "accuracy": 0.5, "probability": 0.1, "share": 0.4, "chance": 0.2}
            for d in ("000-019", "020-049", "050-099", "100-", ">=50")
        ],
        "spectra": [
            {"layer": n, "entry": "k", "width": 32, "effective_rank": 9.5 + n, "singular_values": [1.0, 0.5, 0.25]}
            for n in (0, 1)
        ],
        "experts": {},
        "stories": [{"prompt": "Once", "text": " upon a time."}],
    } | more  # fmt: skip


def rows_of(*rows: dict) -> Rows:
    return Rows({key_of_row(r): r for r in rows})


def done(made: Study, loss: Callable[[Task], float | None]) -> Rows:
    """Rows of all runs of a study; `loss(task)` gives the best loss, None for a run that is missing."""
    rows = rows_of()
    for _ in range(2):  # the second time for the seeds that waited for their learning rate
        tasks = plan(made, rows).tasks
        rows = rows_of(*(row(t, loss(t)) for t in tasks if loss(t) is not None))
    return rows


def by_name(table: dict[str, float], noise: float = 0.0) -> Callable[[Task], float | None]:
    """Losses by point; seeds differ by `noise`, equally for all points."""
    return lambda task: table.get(task.point.name) and table[task.point.name] * (1 + noise * task.seed)
