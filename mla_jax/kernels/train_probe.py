"""Whether the training kernels work on this device: all of them and their twins in one program, run until it passes.

One program, so that a second start reads it from the compilation cache. Small shapes; values and gradients in bfloat16
beside twins in float32.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mla_jax.kernels import (
    best_experts,
    cross_entropy,
    gelu,
    masked_hidden,
    norm,
    passed,
    rotate_heads,
    rotate_in_place,
)
from mla_jax.model import functions

TOLERANCE = 0.03  # of the largest number of a result, or of 1


@functools.lru_cache(maxsize=1)
def obstacle() -> str:
    """ "" where the kernels compute what their plain twins do, else the reason: drivers, compilers and GPUs differ."""
    return passed.once("training", _try)


def _try() -> str:
    try:
        errors = jax.jit(lambda: [check(False) for check in CHECKS.values()])()
    except Exception as failure:  # compilers raise many types
        words = " ".join(str(failure).split())[:150] or type(failure).__name__
        return f"a training kernel does not run here ({words})"
    for name, error in zip(CHECKS, errors, strict=True):
        if not float(error) <= TOLERANCE:
            return f"the training kernel {name} is wrong here (error {float(error):.2g})"
    return ""


def _draw(seed: int, *shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.bfloat16)


def _gain(width: int) -> jax.Array:
    return jnp.linspace(0.5, 1.5, width)


def _wide(tree: Any) -> Any:
    return jax.tree.map(lambda a: a.astype(jnp.float32), tree)


def _largest(found: Any, wanted: Any) -> jax.Array:
    """The largest difference of two trees; no number where either has none."""
    pairs = zip(jax.tree.leaves(_wide(found)), jax.tree.leaves(_wide(wanted)), strict=True)
    return jnp.max(jnp.stack([jnp.max(jnp.abs(a - b)) / jnp.maximum(1.0, jnp.max(jnp.abs(b))) for a, b in pairs]))


def _error(kernel: Callable, plain: Callable, arguments: Sequence[jax.Array], gradients: Any) -> jax.Array:
    """Of values, and of the gradients that `gradients` of the results give."""
    found, pull = jax.vjp(kernel, *arguments)
    wanted, pull_wanted = jax.vjp(plain, *_wide(tuple(arguments)))
    return _largest((found, pull(gradients)), (wanted, pull_wanted(_wide(gradients))))


def check_norm(interpret: bool) -> jax.Array:
    """LayerNorm, with the stream that passes it by and a bias of that: rows that are padded, and rows in two pieces."""
    return jnp.maximum(*(_check_norm(width, interpret) for width in (80, 768)))


def _check_norm(width: int, interpret: bool) -> jax.Array:
    x, gain = _draw(0, 128, width), _gain(width)

    def plain(x: jax.Array, gain: jax.Array, bias: jax.Array, stream_bias: jax.Array) -> tuple[jax.Array, jax.Array]:
        return functions.with_bias_gradient(x, stream_bias), functions.layer_norm(x, gain, bias)

    gradients = _draw(1, 128, width), _draw(2, 128, width)
    arguments = (x, gain, gain - 1, gain - 1)
    return _error(lambda *a: norm.norm_with_stream(*a, 1e-5, interpret), plain, arguments, gradients)


def check_gelu(interpret: bool) -> jax.Array:
    arguments = 3 * _draw(3, 128, 96), _gain(96)
    return _error(lambda *a: gelu.bias_gelu(*a, interpret), functions.bias_gelu, arguments, _draw(4, 128, 96))


def _angles(length: int, rotary: int) -> tuple[jax.Array, jax.Array]:
    return functions.rope_angles(jnp.arange(length), rotary, 10_000.0)


def check_rotate_heads(interpret: bool) -> jax.Array:
    """Heads, a latent with its norm, and the rotary key behind it."""
    parts = rotate_heads.Part(2, 24, 8), rotate_heads.Part(1, 8, 8, latent=16)
    cos, sin = _angles(32, 8)

    def form(function: Callable, *more: Any) -> Callable:
        return lambda y, gain: function(y, cos, sin, gain, parts, 1e-6, *more)

    gradients = tuple(_draw(5 + i, 2, 32, part.columns) for i, part in enumerate(parts))
    forms = form(rotate_heads.split_and_rotate, interpret), form(rotate_heads.plain)
    return _error(*forms, (_draw(7, 2, 32, 72), _gain(16)), gradients)


def check_rotate_in_place(interpret: bool) -> jax.Array:
    part, (cos, sin) = rotate_heads.Part(3, 24, 8), _angles(32, 8)
    return _error(
        lambda y: rotate_in_place.rotate(y, cos, sin, part, interpret),
        lambda y: rotate_heads.plain(y, cos, sin, None, (part,), 1e-6)[0],
        (_draw(8, 2, 32, 72),),
        _draw(9, 2, 32, 72),
    )


def check_cross_entropy(interpret: bool) -> jax.Array:
    """A row that a program holds, and one that it goes over in pieces; surplus columns."""
    return jnp.maximum(_loss_error(300, 290, interpret), _loss_error(5000, 4900, interpret))


def _loss_error(vocab: int, n_tokens: int, interpret: bool) -> jax.Array:
    logits, targets = 4 * _draw(10, 8, vocab), jnp.arange(8) * (n_tokens // 8)
    weights = _gain(8)

    def plain(logits: jax.Array) -> jax.Array:
        log_p = jax.nn.log_softmax(logits[:, :n_tokens])
        return -jnp.take_along_axis(log_p, targets[:, None], axis=1)[:, 0]

    wanted, pull = jax.vjp(plain, _wide(logits))
    found = cross_entropy.cross_entropy_and_gradient(logits, targets, weights, n_tokens, interpret)
    return _largest(found, (wanted, pull(weights)[0]))


def check_best_experts(interpret: bool) -> jax.Array:
    scores, bias = jax.nn.sigmoid(_wide(_draw(11, 128, 9))), (_gain(9) - 1) / 8

    def form(choose: Callable) -> Callable:
        return lambda scores: choose(scores)[1]

    def plain(scores: jax.Array) -> tuple[jax.Array, jax.Array]:
        expert_idx = jax.lax.top_k(scores + bias, 3)[1]
        return expert_idx, jnp.take_along_axis(scores, expert_idx, axis=1)

    def kernel(scores: jax.Array) -> tuple[jax.Array, jax.Array]:
        return best_experts.best_experts(scores, bias, 3, interpret)

    chosen = _largest(kernel(scores)[0], plain(scores)[0])
    return jnp.maximum(chosen, _error(form(kernel), form(plain), (scores,), _wide(_draw(12, 128, 3))))


def check_masked_hidden(interpret: bool) -> jax.Array:
    """Three of seven experts of width 12 a row, two shared ones behind them, tanh-GELU."""
    rows, experts, shared, width, top_k = 128, 7, 2, 12, 3
    rng = np.random.default_rng(13)
    expert_idx = jnp.asarray(np.stack([rng.permutation(experts)[:top_k] for _ in range(rows)]), jnp.int32)

    def plain(pre: jax.Array, bias: jax.Array, weight: jax.Array) -> jax.Array:
        one_hot = jax.nn.one_hot(expert_idx, experts, dtype=jnp.float32)
        routed = jnp.sum(one_hot * weight[..., None], axis=1)
        factor = jnp.concatenate([routed, jnp.ones((rows, shared))], axis=1)
        return functions.activation(None, pre.at[:, experts:].add(bias)) * factor[..., None]

    def kernel(pre: jax.Array, bias: jax.Array, weight: jax.Array) -> jax.Array:
        return masked_hidden.masked_hidden((pre,), bias, expert_idx, weight, shared, interpret)

    pre, bias = _draw(14, rows, experts + shared, width), _wide(_draw(15, shared, width))
    weight = jax.nn.sigmoid(_wide(_draw(16, rows, top_k)))
    return _error(kernel, plain, (pre, bias, weight), _draw(17, rows, experts + shared, width))


CHECKS: dict[str, Callable[[bool], jax.Array]] = {
    "norm": check_norm,
    "gelu": check_gelu,
    "rotate_heads": check_rotate_heads,
    "rotate_in_place": check_rotate_in_place,
    "cross_entropy": check_cross_entropy,
    "best_experts": check_best_experts,
    "masked_hidden": check_masked_hidden,
}
