"""What saves memory changes no number: remat, cross-entropy over parts of the sequence, donation."""

import functools
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import QUICK, abstract_params, quick_jit, random_params, random_tokens, reference_model, tiny_config

from mla_jax.config import Config, replace
from mla_jax.config_files import load_config
from mla_jax.errors import UserError
from mla_jax.train.loss import chunked_cross_entropy, cross_entropy_reference
from mla_jax.train.optim import make_optimizer
from mla_jax.train.state import abstract_state, init_state
from mla_jax.train.step import make_train_step

ROWS, LENGTH, WIDTH, VOCAB = 3, 12, 8, 30


def gradients_of(config: Config, remat: str) -> Any:
    model, tokens = reference_model(config), random_tokens(config, 2, 12)
    key = jax.random.key(1)

    def loss(params: Any) -> jax.Array:
        logits, aux = model.apply({"params": params}, tokens, None, key, remat)
        return jnp.mean(cross_entropy_reference(logits, tokens, config.model.vocab_size)) + jnp.sum(aux.attn_logit_max)

    return quick_jit(jax.value_and_grad(loss))(random_params(model))


KINDS = {
    "unrolled": ({"model.n_layers": 1, "model.dropout": 0.2}, ("full",)),
}
LONGER = {
    "dots": ({"model.n_layers": 1, "model.dropout": 0.2}, ("dots",)),
    "scan": ({"model.scan_layers": True, "model.dropout": 0.2}, ("full",)),
    "gpt": ({"model.block": "gpt", "model.dropout": 0.2}, ("dots", "full")),
    "two layers": ({"model.dropout": 0.2}, ("dots", "full")),
    "scan of dots": ({"model.scan_layers": True}, ("dots",)),
}


@pytest.mark.parametrize("kind", [*KINDS, *(pytest.param(kind, marks=pytest.mark.slow) for kind in LONGER)])
def test_remat_changes_neither_values_nor_gradients(kind: str) -> None:
    knobs, remats = (KINDS | LONGER)[kind]
    config = tiny_config("mla_rope", **knobs)
    plain = gradients_of(config, "none")
    for remat in remats:
        again = gradients_of(config, remat)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), again, plain)


@functools.lru_cache
def compiled(config: Config) -> Any:
    optimizer, model = make_optimizer(config.optim), reference_model(config)
    batch = {
        name: jax.ShapeDtypeStruct((config.train.batch_size, config.train.seq_len + 1), jnp.int32)
        for name in ("tokens", "segment_ids")
    }
    return make_train_step(model, optimizer, config).lower(abstract_state(model, optimizer), batch).compile(QUICK)


def deep_config(**knobs: Any) -> Config:
    size = {"model.n_layers": 1, "model.max_len": 128, "train.seq_len": 128, "train.batch_size": 4}
    return tiny_config("mla_rope", **(size | {"tokenizer.vocab_size": 300, "model.vocab_size": 300} | knobs))


@pytest.mark.slow
def test_remat_saves_memory() -> None:
    """Of the gradient's intermediates, in a model deep enough for them to count; the scan keeps compilation short."""
    sizes = []
    for remat in ("none", "dots", "full"):
        config = deep_config(**{"model.n_layers": 6, "model.scan_layers": True})
        model, tokens = reference_model(config), jnp.zeros((4, 128), jnp.int32)

        def loss(params: Any, model: Any = model, tokens: Any = tokens, remat: str = remat) -> jax.Array:
            x, _ = model.apply({"params": params}, tokens, None, None, remat, method="hidden")
            return jnp.sum(x**2)

        program = quick_jit(jax.grad(loss)).lower(abstract_params(model)).compile()
        sizes.append(program.memory_analysis().temp_size_in_bytes)
    assert sizes[0] > 1.2 * sizes[1] > 1.2 * sizes[2], sizes


def loss_inputs(dtype: Any = jnp.float32) -> tuple[jax.Array, ...]:
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal((ROWS, LENGTH, WIDTH)), dtype)
    embedding = jnp.asarray(rng.standard_normal((VOCAB, WIDTH)), jnp.float32)
    targets = jnp.asarray(rng.integers(0, 25, (ROWS, LENGTH)), jnp.int32)
    weights = jnp.asarray(rng.uniform(-1, 2, (ROWS, LENGTH)), jnp.float32)
    return x, embedding, targets, weights


@pytest.mark.parametrize("chunks", [1, 3, 12])
@pytest.mark.parametrize("n_tokens", [VOCAB, 25])
def test_parts_of_the_sequence_give_the_whole_loss(chunks: int, n_tokens: int) -> None:
    x, embedding, targets, weights = loss_inputs()

    def plain(x: jax.Array, embedding: jax.Array, weights: jax.Array) -> jax.Array:
        nll = cross_entropy_reference(jnp.einsum("btd,vd->btv", x, embedding), targets, n_tokens)
        return 0.7 * jnp.sum(nll * weights)

    def parts(x: jax.Array, embedding: jax.Array, weights: jax.Array) -> jax.Array:
        return 0.7 * chunked_cross_entropy(x, embedding, targets, weights, n_tokens, chunks)

    expected = jax.value_and_grad(plain, argnums=(0, 1, 2))(x, embedding, weights)
    found = quick_jit(jax.value_and_grad(parts, argnums=(0, 1, 2)))(x, embedding, weights)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), found, expected)
    alone = quick_jit(parts)(x, embedding, weights)  # without gradients another path runs
    np.testing.assert_allclose(alone, expected[0], rtol=1e-5)


def test_bfloat16_parts_accumulate_in_float32() -> None:
    x, embedding, targets, weights = loss_inputs(jnp.bfloat16)
    found = [
        quick_jit(jax.grad(lambda table, n=chunks: chunked_cross_entropy(x, table, targets, weights, VOCAB, n)))(
            embedding
        )
        for chunks in (1, 12)
    ]
    assert found[0].dtype == jnp.float32
    np.testing.assert_allclose(found[0], found[1], rtol=1e-4, atol=1e-4)


def wide(text: str) -> list[str]:
    """Arrays of [rows, length, vocabulary] in a compiled program."""
    return re.findall(r"\[4,128,300\]", text)


def test_a_step_over_parts_is_the_same_step_and_has_no_whole_logits() -> None:
    whole, parts = deep_config(), deep_config(**{"train.loss_chunks": 8})
    programs = {config: compiled(config) for config in (whole, parts)}
    assert wide(programs[whole].as_text())
    assert not wide(programs[parts].as_text())
    sizes = [programs[config].memory_analysis().temp_size_in_bytes for config in (whole, parts)]
    assert sizes[1] < sizes[0]
    results = []
    for config, program in programs.items():
        model, optimizer = reference_model(config), make_optimizer(config.optim)
        tokens = random_tokens(config, 4, 129)
        state = init_state(model, optimizer, random_params(model))
        results.append(program(state, {"tokens": tokens, "segment_ids": jnp.ones_like(tokens)}))
    for name in ("loss", "grad_norm"):
        np.testing.assert_allclose(results[0][1][name], results[1][1][name], rtol=1e-5)


@pytest.mark.slow
def test_the_state_is_donated_whatever_the_optimizer() -> None:
    """Every array of the state has a result that takes its place in memory."""
    config = deep_config(**{"optim.name": "muon", "optim.ema_decay": 0.9})
    text = compiled(config).as_text()
    aliases = re.findall(r"\{\d+\}: \(\d+, \{\}, (?:may|must)-alias\)", text[: text.index("\n")])
    state = abstract_state(reference_model(config), make_optimizer(config.optim))
    assert len(aliases) == len(jax.tree.leaves(state))


def test_parts_by_themselves_are_as_few_as_fit_a_gibibyte() -> None:
    def parts(vocabulary: int, **knobs: Any) -> int:
        config = load_config("mla_rope", **({"train.batch_size": 128, "train.loss_chunks": 0} | knobs))
        return replace(config, **{"model.vocab_size": vocabulary}).train.loss_chunks

    assert parts(0) == 0  # not known before the tokenizer is
    assert parts(8192) == 1  # 128 x 512 x 8192 x 2 bytes are 1 GiB
    assert parts(8193) == 2
    assert parts(50304) == 8  # 6.1 GiB
    assert parts(50304, **{"train.microbatches": 8}) == 1


@pytest.mark.parametrize(
    ("knobs", "words"),
    [
        ({"train.loss_chunks": 7}, r"train.loss_chunks is 7; it must divide train.seq_len \(512\)"),
        ({"train.loss_chunks": -1}, "train.loss_chunks is -1"),
        ({"train.remat": "some"}, r"train.remat is 'some'.*none \| dots \| full"),
        ({"optim.name": "sgd"}, r"optim.name is 'sgd'.*adamw \| muon"),
        ({"optim.ema_decay": 1.0}, "optim.ema_decay is 1.0"),
        ({"optim.decay_fraction": 1.5}, "optim.decay_fraction is 1.5"),
        ({"optim.schedule": "linear"}, r"optim.schedule is 'linear'.*cosine \| wsd"),
    ],
)
def test_bad_values_are_sentences(knobs: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        load_config("mla_rope", **knobs)
