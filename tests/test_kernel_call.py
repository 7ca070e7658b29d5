"""mla_jax.kernels.kernel_call: what is alike is traced once, and is what pallas_call gives."""

import functools
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gpu_lowering import TRITON_CALL, lower_for_h100, lowered_for_h100
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu
from run_tools import REPOSITORY

from mla_jax import compile_cache
from mla_jax.config_files import load_config
from mla_jax.kernels import kernel_call as kernel_call_lib
from mla_jax.kernels import norm
from mla_jax.kernels.kernel_call import kernel_call
from mla_jax.model.backend import Backend
from mla_jax.model.transformer import Transformer
from mla_jax.train.optim import make_optimizer
from mla_jax.train.state import abstract_state
from mla_jax.train.step import make_train_step

traced: list[tuple[int, int]] = []


def program(shift: int, x_ref: Any, out_ref: Any, *, factor: int) -> None:
    traced.append((shift, factor))
    plgpu.store(out_ref.at[:], (plgpu.load(x_ref.at[:]) * factor + shift).astype(out_ref.dtype))


def outer(x_ref: Any, out_ref: Any, *, inner: Any) -> None:
    inner(0, x_ref, out_ref)


def scaled(x: jax.Array, factor: int, shift: int = 0, call: Any = kernel_call) -> jax.Array:
    return call(
        functools.partial(functools.partial(program, shift), factor=factor),
        out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype)],
        grid=(1,),
        compiler_params=plgpu.CompilerParams(num_warps=1),
        input_output_aliases={0: 0},
        interpret=True,
        name="scaled",
    )(x)[0]


def test_calls_that_are_alike_trace_a_kernel_once() -> None:
    traced.clear()

    @jax.jit
    def layers(x: jax.Array, y: jax.Array) -> tuple[jax.Array, ...]:
        for _ in range(3):
            x = scaled(x, 2)
        return x, scaled(x, 3), scaled(x, 2, shift=1), scaled(y, 2)

    found = layers(jnp.ones(8), jnp.ones(4))
    assert traced == [(0, 2), (0, 3), (1, 2), (0, 2)]  # also each constant, and each shape, once
    for numbers, wanted in zip(found, (8, 24, 17, 2), strict=True):
        np.testing.assert_array_equal(numbers, wanted)


def test_the_program_is_that_of_pallas_call() -> None:
    x = jnp.arange(8.0)
    plain, shared = (
        str(jax.make_jaxpr(lambda x, call=call: scaled(x, 5, call=call))(x)) for call in (pl.pallas_call, kernel_call)
    )
    assert plain == shared


def test_equal_numbers_of_other_types_are_other_kernels() -> None:
    large = jnp.array([2**24 + 1], jnp.int32)
    assert scaled(large, 1)[0] == 2**24 + 1 and scaled(large, 1.0)[0] == 2**24  # which is int32 times float32
    assert scaled(large, 1)[0] == 2**24 + 1


def test_partials_given_to_a_partial_are_found_again() -> None:
    def call(factor: int) -> Any:
        inner = functools.partial(program, factor=factor)
        return kernel_call(
            functools.partial(outer, inner=inner),
            out_shape=jax.ShapeDtypeStruct((8,), jnp.float32),
            grid=(1,),
            compiler_params=plgpu.CompilerParams(num_warps=1),
            interpret=True,
            name="outer",
        )

    assert call(2) is call(2) and call(2) is not call(3)
    np.testing.assert_array_equal(call(3)(jnp.ones(8)), 3)


def training_step(remat: str) -> str:
    """Its text, lowered for an H100 with the kernels of training."""
    knobs = {"model.vocab_size": 512, "model.n_layers": 2, "train.batch_size": 8, "train.seq_len": 128}
    config = load_config("mla_rope:xs", **knobs, **{"train.remat": remat})
    backend = Backend(dtype="bfloat16", attention_impl="xla", platform="gpu", train_impl="pallas")
    model, optimizer = Transformer(config.model, backend), make_optimizer(config.optim)
    rows, seed = jax.ShapeDtypeStruct((8, 129), jnp.int32), jax.ShapeDtypeStruct((), jnp.uint32)
    batch = {"tokens": rows, "segment_ids": rows}
    return lowered_for_h100(make_train_step(model, optimizer, config), abstract_state(model, optimizer), batch, seed)


def test_a_program_is_found_again_whoever_called_its_kernels_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By its text, in which a kernel names lines of its first caller unless they are left out."""

    def last_of(*remat: str) -> str:
        kernel_call_lib.forget()
        jax.clear_caches()
        return [training_step(each) for each in remat][-1]

    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path))
    before = jax.config.jax_traceback_in_locations_limit
    try:
        jax.config.update("jax_traceback_in_locations_limit", 10)  # JAX's own; another test may have left it out
        assert last_of("none") != last_of("full", "none")
        compile_cache.enable()
        assert last_of("none") == last_of("full", "none")
    finally:
        jax.config.update("jax_traceback_in_locations_limit", before)
        kernel_call_lib.forget()


def test_every_kernel_goes_this_way() -> None:
    folder = REPOSITORY / "mla_jax"
    found = {path.stem for path in folder.rglob("*.py") if "pallas_call(" in path.read_text(encoding="utf-8")}
    assert found == {"kernel_call"}


def test_a_training_kernel_is_traced_once_each_way(monkeypatch: pytest.MonkeyPatch) -> None:
    ways = ("_forward_program", "_backward_program")
    counted = {way: mock.Mock(side_effect=getattr(norm, way)) for way in ways}
    for way in ways:
        monkeypatch.setattr(norm, way, counted[way])

    def layers(x: jax.Array, gain: jax.Array) -> jax.Array:
        x, gain = 2 * x, 2 * gain  # what arguments know of their device is another type
        for _ in range(4):
            x = x + norm.norm_with_stream(x, gain, None, None, 1e-6, False)[1]
        return jnp.sum(x * x)  # whose gradient needs the last layer forward, too

    x, gain = jax.ShapeDtypeStruct((128, 64), jnp.bfloat16), jax.ShapeDtypeStruct((64,), jnp.float32)
    assert lower_for_h100(jax.grad(layers, argnums=(0, 1)), x, gain).count(TRITON_CALL) == 8
    assert [counted[way].call_count for way in ways] == [1, 1]
