"""Norms, rotary positions, products of one input, feed-forward, dropout and initialisers.

Shapes: B batch, T queries, D model width, H heads, F feed-forward width (docs/architecture.md lists all letters).
Norms and rotations compute in float32 and return the dtype of their input.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.experimental.layout import Layout, with_layout_constraint

from mla_jax import mesh
from mla_jax.config import ModelConfig
from mla_jax.kernels import gelu, norm, rotate_heads, rotate_in_place
from mla_jax.model import initial
from mla_jax.model.backend import Backend
from mla_jax.model.experts import FeedForwardWeights

RMS_EPS = 1e-6  # DeepSeek's and Llama's
LAYER_NORM_EPS = 1e-5  # GPT-2's


def rms_norm(x: jax.Array, gain: jax.Array) -> jax.Array:
    """x [..., D] / RMS(x) * gain [D], in float32 (Zhang & Sennrich 2019)."""
    x32 = x.astype(jnp.float32)
    scale = jax.lax.rsqrt(jnp.mean(jnp.square(x32), axis=-1, keepdims=True) + RMS_EPS)
    return (x32 * scale * gain).astype(x.dtype)


def layer_norm(x: jax.Array, gain: jax.Array, bias: jax.Array) -> jax.Array:
    """(x - mean) / std * gain + bias over the last axis, in float32."""
    x32 = x.astype(jnp.float32)
    mean = jnp.mean(x32, axis=-1, keepdims=True)
    var = jnp.mean(jnp.square(x32), axis=-1, keepdims=True) - jnp.square(mean)
    return ((x32 - mean) * jax.lax.rsqrt(var + LAYER_NORM_EPS) * gain + bias).astype(x.dtype)


class Norm(nn.Module):
    """The block's norm: RMSNorm, or LayerNorm with block=gpt.

    Stream biases. A bias [D] that a sublayer adds to the residual stream has as its gradient the stream's gradient,
    summed over all rows; XLA reads that gradient once more for it. The backward kernel of the norm before the sublayer
    reads it anyway, since the stream that passes the sublayer by has the same gradient, and sums its columns on the
    way. So the bias is given to the norm (`with_stream`), which computes its gradient, and the sublayer adds it under
    stop_gradient (`add_bias`). The plain twin of the norm's part is `with_bias_gradient`.
    """

    block: str
    backend: Backend | None = None

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.with_stream(x)[1]

    def gives_bias_gradient(self, x: jax.Array) -> bool:
        """Whether `with_stream` computes a stream bias' gradient at no cost, for x [B, T, D]: where the kernel runs."""
        return self.backend is not None and in_one_pass(x.shape, self.backend, norm.applies)

    @nn.compact
    def with_stream(self, x: jax.Array, stream_bias: jax.Array | None = None) -> tuple[jax.Array, jax.Array]:
        """x [..., D], for the stream to go on with, and its norm [..., D], both in x's dtype.

        The gradients of the two are added where the norm's is computed.

        stream_bias [D] float32: a bias that will be added to the stream under stop_gradient; its gradient comes from
        here.
        """
        gain = self.param("gain", initial.ONES, (x.shape[-1],))
        bias = self.param("bias", initial.ZEROS, (x.shape[-1],)) if self.block == "gpt" else None
        backend = self.backend
        if not self.gives_bias_gradient(x):
            normed = rms_norm(x, gain) if bias is None else layer_norm(x, gain, bias)
            return with_bias_gradient(x, stream_bias), normed
        eps = RMS_EPS if bias is None else LAYER_NORM_EPS
        given = [vector for vector in (gain, bias, stream_bias) if vector is not None]

        def kernel(x: jax.Array, gain: jax.Array, *more: jax.Array) -> tuple[jax.Array, jax.Array]:
            optional = iter(more)
            vectors = [None if vector is None else next(optional) for vector in (bias, stream_bias)]
            return norm.norm_with_stream(x, gain, *vectors, eps, backend.interpret)

        return mesh.by_rows(kernel, backend.mesh, [x], given)


def with_bias_gradient(x: jax.Array, stream_bias: jax.Array | None) -> jax.Array:
    """x [..., D] plus a zero whose gradient is the bias' [D]: the sum of x's over all rows. None: x as it is."""
    return x if stream_bias is None else x + (stream_bias - jax.lax.stop_gradient(stream_bias)).astype(x.dtype)


def add_bias(y: jax.Array, bias: jax.Array | None, stream_bias: jax.Array | None) -> jax.Array:
    """A sublayer's output y [..., D] + bias [D], if it has one.

    stream_bias [D], if the norm has been given it: added in place of `bias`, without a gradient.
    """
    if bias is None:
        return y
    return y + (bias if stream_bias is None else jax.lax.stop_gradient(stream_bias)).astype(y.dtype)


def in_one_pass(shape: tuple[int, ...], backend: Backend, applies: Callable[[tuple[int, ...]], bool]) -> bool:
    """Whether a kernel of training is asked for and takes what a device holds of an array [B, ...] of this shape."""
    if backend.train_impl != "pallas" or mesh.splits(backend.mesh, "tensor"):
        return False
    own = mesh.own_shape(shape, backend.mesh)
    return own is not None and applies(own)


def rope_angles(positions: jax.Array, width: int, theta: float) -> tuple[jax.Array, jax.Array]:
    """cos, sin [..., T, width/2] float32 of `positions` [..., T] (Su et al. 2021, eq. 15)."""
    frequency = theta ** (-jnp.arange(0, width, 2, dtype=jnp.float32) / width)
    angle = positions[..., None].astype(jnp.float32) * frequency
    return jnp.cos(angle), jnp.sin(angle)


def apply_rope(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """Rotate x [B, T, H, R] by cos, sin [T, R/2] or [B, T, R/2]. Half-split pairs (i, i + R/2), as Llama on HF."""
    cos, sin = cos[..., None, :], sin[..., None, :]
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)


def rotates_in_one_pass(x: jax.Array, positions: jax.Array | None, cfg: ModelConfig, backend: Backend) -> bool:
    """Whether `split_and_rotate` is asked for and takes x [B, T, D]: all rows at positions 0..T-1, no norm of heads."""
    if cfg.position != "rope" or cfg.qk_norm or positions is not None:
        return False
    return in_one_pass(x.shape[:2], backend, lambda own: rotate_heads.applies(*own) and rotate_in_place.applies(*own))


def split_and_rotate(
    y: jax.Array, parts: Sequence[rotate_heads.Part], gain: jax.Array | None, cfg: ModelConfig, backend: Backend
) -> tuple[jax.Array, ...]:
    """A product's parts [B, T, part.columns], heads rotated and a latent normalised, by one kernel each way."""
    cos, sin = rope_angles(jnp.arange(y.shape[1]), parts[0].rotary, cfg.rope_theta)

    def kernel(y: jax.Array, gain: jax.Array | None = None) -> tuple[jax.Array, ...]:
        return rotate_heads.split_and_rotate(y, cos, sin, gain, tuple(parts), RMS_EPS, backend.interpret)

    return mesh.by_rows(kernel, backend.mesh, [y], [] if gain is None else [gain])


def rotate_queries(q: jax.Array, part: rotate_heads.Part, cfg: ModelConfig, backend: Backend) -> jax.Array:
    """Heads [B, T, part.columns] with their ends rotated by positions 0..T-1, by one kernel each way."""
    cos, sin = rope_angles(jnp.arange(q.shape[1]), part.rotary, cfg.rope_theta)

    def kernel(q: jax.Array) -> jax.Array:
        return rotate_in_place.rotate(q, cos, sin, part, backend.interpret)

    return mesh.by_rows(kernel, backend.mesh, [q])


def residual(x: jax.Array, backend: Backend) -> jax.Array:
    """The residual stream x [B, T, D] where a block reads it: rows split over the mesh, row-major in memory."""
    return row_major(mesh.constrain_rows(x, backend.mesh), backend)


def added(x: jax.Array, y: jax.Array) -> jax.Array:
    """x + y, both [B, T, D], as matrices: the form of the product that y comes from.

    Where XLA has to reshape x for cuBLAS to add it, it takes the reshaped x for a value of its own that the sum may
    overwrite, and copies x first.
    """
    rows = x.reshape(-1, x.shape[-1])
    return (rows + y.reshape(rows.shape)).reshape(x.shape)


def whole(table: jax.Array, backend: Backend) -> jax.Array:
    """A table to be indexed, kept whole on a mesh: XLA would otherwise split it where its rows are taken, though a step
    has gathered it (train/fsdp.py), and gather it again."""
    return mesh.constrain(table, backend.mesh)


def row_major(x: jax.Array, backend: Backend) -> jax.Array:
    """x itself, and its gradient, kept in row-major memory order on GPUs.

    Left alone, XLA lays the whole residual stream out as [T, D, B], because the gradient of a learned position table
    sums over B, and then transposes around every norm: about 8 of 51 ms of a size-m step on an H100.
    """
    if backend.attention_impl != "cudnn":
        return x
    rows = x.reshape(-1, x.shape[-1])  # as a matrix, for `added`
    return with_layout_constraint(rows, Layout((0, 1))).reshape(x.shape)


def dropout(x: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
    """Zero entries with probability `rate` and rescale the rest; without a key (evaluation) the identity."""
    if key is None or rate == 0.0:
        return x
    kept = round((1.0 - rate) * 2**16)  # 16 random bits an entry: half the price of a uniform float
    keep = jax.random.bits(key, x.shape, jnp.uint16) < kept
    return jnp.where(keep, x * (2**16 / kept), 0).astype(x.dtype)


def residual_std(cfg: ModelConfig) -> float:
    """Std of matrices that write to the residual stream: their 2L contributions add up (GPT-2)."""
    return cfg.init_std / math.sqrt(2 * cfg.n_layers)


def factor_stds(cfg: ModelConfig, rank: int, normed: bool) -> tuple[float, float]:
    """Std of the down- and up-projection of a factored matrix [D, rank] x [rank, n].

    `init=product_matched`: the product has std `init_std`, as the one matrix it replaces; with an RMS norm between
    the factors (which undoes the first one's scale) the same holds of what the pair computes from unit-RMS input.
    `naive`: both have `init_std`, so the product has init_std^2 sqrt(rank): the suspect in paper A's full-rank loss.
    """
    if cfg.init == "naive":
        return cfg.init_std, cfg.init_std
    if normed:
        return cfg.init_std, cfg.init_std * math.sqrt(cfg.d_model / rank)
    balanced = math.sqrt(cfg.init_std / math.sqrt(rank))
    return balanced, balanced


def products(x: jax.Array, weights: Sequence[jax.Array], dtype: Any) -> list[jax.Array]:
    """x [..., D] times each of weights [D, ...], in `dtype` -> [..., K_i]: a weight's other axes as one."""
    return list(_products(x, tuple(w.reshape(w.shape[0], -1).astype(dtype) for w in weights)))


def side_by_side(weights: Sequence[jax.Array], dtype: Any) -> jax.Array:
    """Weights [D, ...] as one matrix [D, K], for one product that is read as it is (`split_and_rotate`)."""
    return jnp.concatenate([w.reshape(w.shape[0], -1).astype(dtype) for w in weights], axis=1)


@jax.custom_vjp
def _products(x: jax.Array, weights: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
    return tuple(x @ w for w in weights)


def _products_backward(kept: tuple, gradients: tuple[jax.Array, ...]) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    # Product + sum, in this order: so cuBLAS adds while it writes. Autodiff's order costs a pass over [..., D] more.
    x, weights = kept
    total = None
    for g, w in zip(gradients, weights, strict=True):
        own = g @ w.T
        total = own if total is None else own + total
    return total, tuple(jnp.einsum("...d,...k->dk", x, g) for g in gradients)


_products.defvjp(lambda x, weights: (_products(x, weights), (x, weights)), _products_backward)


def heads_of(y: jax.Array, w: jax.Array, bias: jax.Array | None) -> jax.Array:
    """A product y [..., H K] with w [D, H, K] as [..., H, K], plus bias [H, K].

    The bias joins the product while its result is still a matrix: only there cuBLAS adds it on the way.
    """
    if bias is not None:
        y = y + bias.reshape(-1).astype(y.dtype)
    return y.reshape(*y.shape[:-1], *w.shape[1:])


def joined_heads(out: jax.Array, w: jax.Array) -> jax.Array:
    """out [..., H, V] times w [H, V, D] -> [..., D] in out's dtype.

    One product of matrices, not a contraction of two axes, whose gradient XLA makes as [H, D, V] and transposes: for
    the optimizer three times, 36 copies and 12 launches a step of size l.
    """
    return out.reshape(*out.shape[:-2], -1) @ w.astype(out.dtype).reshape(-1, w.shape[-1])


def bias_gelu(x: jax.Array, bias: jax.Array) -> jax.Array:
    """tanh-GELU of x [..., F] + bias [F]."""
    return jax.nn.gelu(x + bias, approximate=True)


def hidden_units(x: jax.Array, bias: jax.Array, backend: Backend) -> jax.Array:
    """tanh-GELU of x [..., F] + bias [F] in the form that the backend takes. The kernel reads float32 biases itself."""
    if not in_one_pass(x.shape, backend, gelu.applies):
        return bias_gelu(x, bias.astype(x.dtype))

    def kernel(x: jax.Array, bias: jax.Array) -> jax.Array:
        return gelu.bias_gelu(x, bias, backend.interpret)

    return mesh.by_rows(kernel, backend.mesh, [x], [bias])


class FeedForward(nn.Module):
    """SwiGLU (Shazeer 2020), or a tanh-GELU layer with biases for block=gpt. x [B, T, D] -> [B, T, D]."""

    cfg: ModelConfig
    backend: Backend
    hidden: int  # F

    def __call__(self, x: jax.Array, stream_bias: jax.Array | None = None) -> jax.Array:
        """x [B, T, D] -> [B, T, D]. stream_bias: `self.stream_bias()`, if the norm computes its gradient (`Norm`)."""
        dtype, w = self.backend.jnp_dtype, self.weights()
        if w.w_gate is None:
            h = hidden_units(x @ w.w_up.astype(dtype), w.b_up, self.backend)
            return add_bias(h @ w.w_down.astype(dtype), w.b_down, stream_bias)
        h = jax.nn.silu(x @ w.w_gate.astype(dtype)) * (x @ w.w_up.astype(dtype))
        return h @ w.w_down.astype(dtype)

    def stream_bias(self) -> jax.Array | None:
        """What a call adds to every row: the second layer's bias [D] float32, or None."""
        return self.weights().b_down

    @nn.compact
    def weights(self) -> FeedForwardWeights:
        """The parameters, in their own dtype: for a layer that computes this one along with its own."""
        cfg, width, hidden = self.cfg, self.cfg.d_model, self.hidden
        into, out_of = initial.normal(cfg.init_std), initial.normal(residual_std(cfg))
        if cfg.block == "gpt":
            w_in = self.param("w_in", into, (width, hidden))
            b_in = self.param("b_in", initial.ZEROS, (hidden,))
            w_out = self.param("w_out", out_of, (hidden, width))
            b_out = self.param("b_out", initial.ZEROS, (width,))
            return FeedForwardWeights(None, w_in, w_out, b_in, b_out)
        w_gate = self.param("w_gate", into, (width, hidden))
        w_up = self.param("w_up", into, (width, hidden))
        return FeedForwardWeights(w_gate, w_up, self.param("w_down", out_of, (hidden, width)))
