"""Time of a training step on random tokens: the trainer's own jitted step, without data loading."""

from typing import Any

from mla_jax import accounting, devices
from mla_jax.bench.points import Point
from mla_jax.bench.synthetic import fixed_batch
from mla_jax.bench.timing import measure
from mla_jax.config import replace
from mla_jax.model import backend as backend_lib
from mla_jax.model.initial import init_params
from mla_jax.model.transformer import Transformer
from mla_jax.train import optim
from mla_jax.train.state import init_state
from mla_jax.train.step import make_train_step


def run(point: Point, batch: int, length: int, repeats: int, steps: int = 5) -> dict[str, Any]:
    """Metrics of `steps` optimizer steps of `batch` sequences of `length` tokens, without dropout."""
    knobs = {"train.batch_size": batch, "train.seq_len": length, "model.dropout": 0.0}
    knobs["model.max_len"] = max(length, point.config.model.max_len)
    config = replace(point.config, **knobs)
    model = Transformer(config.model, backend_lib.choose(config.model))
    optimizer = optim.make_optimizer(config.optim)
    step = make_train_step(model, optimizer, config)
    held = [init_state(model, optimizer, init_params(model, 0))]
    rows = fixed_batch(config)

    def call(_: None) -> Any:
        state = held.pop()
        for _ in range(steps):
            state, metrics = step(state, rows)
        held.append(state)
        return metrics

    timing = measure(call, lambda: None, repeats)
    rate = batch * length * steps / timing.median_s
    flops = accounting.flops_per_token(config.model, length) * rate
    mfu = devices.mfu(flops)
    return {
        **timing.metrics(steps),
        "dtype": model.backend.dtype,
        "tokens_per_s": rate,
        "flops_per_s": flops,
        **({"mfu": mfu} if mfu else {}),
    }
