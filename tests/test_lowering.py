"""Every named config's train step and decode step lower for a TPU: nothing needs CUDA."""

import re
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import jax
import jax.export  # a module of its own, which jax does not import by itself
import jax.numpy as jnp
import pytest

from mla_jax import config_files
from mla_jax.config import Config
from mla_jax.config_files import load_config
from mla_jax.model import attention
from mla_jax.model import backend as backend_lib
from mla_jax.model.cache import init_cache
from mla_jax.model.transformer import Transformer
from mla_jax.train.optim import make_optimizer
from mla_jax.train.state import abstract_state
from mla_jax.train.step import make_train_step

ROWS, LENGTH = 4, 64
TPU = SimpleNamespace(platform="tpu", device_kind="TPU v5 lite")


def small(name: str, **knobs: Any) -> Config:
    """A named config, real but for its vocabulary and depth: one layer of each kind that it has."""
    small = {
        "model.n_layers": 1 + load_config(name).model.first_k_dense,
        "model.vocab_size": 512,
        "tokenizer.vocab_size": 512,
        "train.microbatches": 1,
    }
    return load_config(name, **(small | {"train.batch_size": ROWS, "train.seq_len": LENGTH} | knobs))


def lowered(function: Any, *arguments: Any) -> str:
    """The StableHLO of `function` for a TPU that is not there."""
    return jax.export.export(jax.jit(function), platforms=["tpu"])(*arguments).mlir_module()


def check(config: Config) -> None:
    backend = backend_lib.choose(config.model, TPU)
    assert (backend.dtype, backend.attention_impl) == ("bfloat16", "xla")
    model, optimizer = Transformer(config.model, backend), make_optimizer(config.optim)
    state = abstract_state(model, optimizer)
    batch = {name: jax.ShapeDtypeStruct((ROWS, LENGTH + 1), jnp.int32) for name in ("tokens", "segment_ids")}
    store = jax.eval_shape(lambda: init_cache(config.model, ROWS, LENGTH))
    token, start = jax.ShapeDtypeStruct((ROWS, 1), jnp.int32), jax.ShapeDtypeStruct((ROWS,), jnp.int32)
    prompt = jax.ShapeDtypeStruct((ROWS, 24), jnp.int32)
    programs = [
        lowered(make_train_step(model, optimizer, config), state, batch),
        lowered(lambda *a: model.apply(*a, method="prefill"), state.variables, prompt, start, store),
        lowered(lambda *a: model.apply(*a, method="decode"), state.variables, token, start, store),
    ]
    for program in programs:
        assert "bf16" in program
        assert "cudnn" not in program
        assert "triton" not in program.lower()


@pytest.mark.parametrize("name", config_files.names())
def test_train_and_decode_steps_lower_for_a_tpu(name: str) -> None:
    check(small(name))


def test_so_do_muon_and_what_saves_memory() -> None:
    knobs = {"optim.name": "muon", "optim.ema_decay": 0.999, "optim.muon_dtype": "bfloat16"}
    knobs |= {"model.n_layers": 2}  # Muon takes matrices of one shape together
    check(small("mla_rope", **knobs, **{"train.remat": "dots", "train.loss_chunks": 4, "model.qk_norm": True}))


@pytest.fixture
def cudnn(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """JAX believes that there is cuDNN 9.12 on an sm90 GPU: what it says to XLA then can be read anywhere."""
    from jax._src.cudnn import fused_attention_stablehlo as fused

    monkeypatch.setattr(fused, "check_cudnn_version", lambda: 91200)
    monkeypatch.setattr(fused, "check_compute_capability", lambda _: True)
    attention.takes_unequal_heads.cache_clear()
    yield
    attention.takes_unequal_heads.cache_clear()


H100 = SimpleNamespace(platform="gpu", device_kind="NVIDIA H100 80GB HBM3", compute_capability="9.0")


@pytest.mark.parametrize(("version", "widths"), [(90800, (96, 96)), (91200, (96, 64))])
def test_mla_trains_through_cudnn_on_a_gpu(
    cudnn: None, monkeypatch: pytest.MonkeyPatch, version: int, widths: tuple[int, int]
) -> None:
    """Forward and backward, and the head sizes that cuDNN is given: of queries and of values."""
    from jax._src.cudnn import fused_attention_stablehlo as fused

    monkeypatch.setattr(fused, "check_cudnn_version", lambda: version)
    config = small("mla_rope", **{"model.n_layers": 1, "model.decode_impl": "xla", "model.train_impl": "xla"})
    backend = backend_lib.choose(config.model, H100)
    assert (backend.dtype, backend.attention_impl) == ("bfloat16", "cudnn")
    model, optimizer = Transformer(config.model, backend), make_optimizer(config.optim)
    batch = {name: jax.ShapeDtypeStruct((ROWS, LENGTH + 1), jnp.int32) for name in ("tokens", "segment_ids")}
    step, state = make_train_step(model, optimizer, config), abstract_state(model, optimizer)
    calls = [f"__cudnn$fmhaSoftmax{kind}" for kind in ("", "Backward")]
    program = step.trace(state, batch).lower(lowering_platforms=("cuda",)).as_text()
    for call in calls:
        operands = re.search(rf"@{re.escape(call)}\(.*?: \((.*?)\) ->", program)[1]
        sizes = [int(size) for size in re.findall(r"tensor<4x64x8x(\d+)xbf16>", operands)[:3]]
        assert sizes == [widths[0], widths[0], widths[1]], call
