"""The decoder-only transformer: one module for every point of the grid. The call says which form runs.

`__call__`: training and evaluation. `prefill`: a prompt into an empty cache. `decode`: tokens on top of a cache.
Dropout happens where a key is passed; there is no mode flag.
"""

import functools
from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct

from mla_jax.config import ModelConfig
from mla_jax.kernels import row_linear
from mla_jax.kernels.row_linear import Linear
from mla_jax.model import cache, feed_forward, initial, norms, packed_decode, serving, stream
from mla_jax.model.attention import Where
from mla_jax.model.backend import Backend
from mla_jax.model.mha import MultiHeadAttention
from mla_jax.model.mla_joint import JointLatentAttention
from mla_jax.model.mla_per_head import PerHeadLatentAttention
from mla_jax.model.moe import MoE, RouterAux, initial_router_bias


@struct.dataclass
class Aux:
    """What a forward pass tells about itself. attn_logit_max [L, H] float32: of the batch's first row.

    router: what the experts' routers did, with [L_moe] in front; None without experts.
    """

    attn_logit_max: jax.Array
    router: RouterAux | None


def variables_of(params: Any, router_bias: jax.Array | None = None) -> dict[str, Any]:
    """What `Transformer.apply` takes: the parameters and, with experts, the read-only router bias [L_moe, E].

    The one place that knows how the two travel together; everything else passes the mapping on.
    """
    return {"params": params} if router_bias is None else {"params": params, "router": {"bias": router_bias}}


def attention_module(cfg: ModelConfig) -> type[nn.Module]:
    """The attention class of a config."""
    if cfg.attention != "mla":
        return MultiHeadAttention
    return JointLatentAttention if cfg.latent == "joint" else PerHeadLatentAttention


class Block(nn.Module):
    """Pre-norm residual block: attention, then feed-forward or experts. x [B, T, D] -> [B, T, D].

    The calls of a block with experts (`moe`) take its router_bias [E]; the others None.
    """

    cfg: ModelConfig
    backend: Backend
    moe: bool

    def setup(self) -> None:
        self.attention_norm = norms.Norm(self.cfg.block, self.backend)
        self.attention = attention_module(self.cfg)(self.cfg, self.backend)
        self.ffn_norm = norms.Norm(self.cfg.block, self.backend)
        dense = functools.partial(feed_forward.FeedForward, hidden=self.cfg.d_ff)
        self.ffn = (MoE if self.moe else dense)(self.cfg, self.backend)

    def __call__(
        self, x: jax.Array, where: Where, dropout_key: jax.Array | None, router_bias: jax.Array | None
    ) -> tuple[jax.Array, Aux]:
        keys = (None, None) if dropout_key is None else jax.random.split(dropout_key)
        x = stream.residual(x, self.backend)
        # Dropout would come between the bias and the stream.
        by_norm = self.attention_norm.gives_bias_gradient(x) and (dropout_key is None or self.cfg.dropout == 0)
        with jax.named_scope("attention"):
            stream_bias = self.attention.stream_bias() if by_norm else None
            x, normed = self.attention_norm.with_stream(x, stream_bias)
            out, logit_max = self.attention(normed, where, stream_bias)
            x = stream.added(x, stream.dropout(out, self.cfg.dropout, keys[0]))
        with jax.named_scope("ffn"):
            stream_bias = self.ffn.stream_bias() if by_norm and not self.moe else None
            x, normed = self.ffn_norm.with_stream(x, stream_bias)
            out, router = self._ffn(normed, router_bias, stream_bias)
            x = stream.added(x, stream.dropout(out, self.cfg.dropout, keys[1]))
        return x, Aux(logit_max, router)

    def _ffn(
        self, normed: jax.Array, router_bias: jax.Array | None, stream_bias: jax.Array | None = None
    ) -> tuple[jax.Array, RouterAux | None]:
        return self.ffn(normed, router_bias) if self.moe else (self.ffn(normed, stream_bias), None)

    def feed_forward(self, x: jax.Array, router_bias: jax.Array | None) -> jax.Array:
        """What the second half of the block adds to x."""
        return self._ffn(self.ffn_norm(x), router_bias)[0]

    def prefill(
        self, x: jax.Array, where: Where, store: cache.LayerCache, router_bias: jax.Array | None
    ) -> tuple[jax.Array, cache.LayerCache]:
        out, store = self.attention.prefill(self.attention_norm(x), where, store)
        x = x + out
        return x + self.feed_forward(x, router_bias), store

    def decode(
        self, x: jax.Array, start: jax.Array, store: cache.LayerCache, router_bias: jax.Array | None
    ) -> tuple[jax.Array, cache.LayerCache]:
        out, store = self.attention.decode(self.attention_norm(x), start, store)
        x = x + out
        return x + self.feed_forward(x, router_bias), store


# `train.remat` -> what a block keeps for its backward pass; "none" keeps everything.
REMAT_POLICIES = {
    # The products with weights: attention and what is elementwise is computed again.
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "full": jax.checkpoint_policies.nothing_saveable,  # the block's input alone
}


def rematerialized(remat: str) -> Callable[..., tuple[jax.Array, Aux]]:
    """(block, x, where, dropout_key, router_bias) -> (x, Aux), intermediates kept for the backward pass or not."""

    def call(block: Block, *arguments: Any) -> tuple[jax.Array, Aux]:
        return block(*arguments)

    return call if remat == "none" else nn.remat(call, policy=REMAT_POLICIES[remat])


class Transformer(nn.Module):
    """Tokens to logits over `cfg.vocab_size` rows (tied embeddings); logits are in the backend's dtype.

    Rows beyond the tokenizer's size are surplus: the loss and the sampler mask them, not the model.
    """

    cfg: ModelConfig
    backend: Backend

    def setup(self) -> None:
        cfg = self.cfg
        self.embedding = self.param("embedding", initial.normal(cfg.init_std), (cfg.vocab_size, cfg.d_model))
        if cfg.position == "learned":
            self.position_embedding = self.param(
                "position_embedding", initial.normal(cfg.init_std), (cfg.max_len, cfg.d_model)
            )
        for i in range(cfg.n_layers):
            setattr(self, f"layer_{i}", Block(cfg, self.backend, self._has_experts(i)))
        self.final_norm = norms.Norm(cfg.block)

    def __call__(
        self,
        tokens: jax.Array,
        where: Where | None = None,
        dropout_key: jax.Array | None = None,
        remat: str = "none",
    ) -> tuple[jax.Array, Aux]:
        """tokens [B, T] int32 -> logits [B, T, vocab], Aux. Deterministic without a dropout key."""
        x, aux = self.hidden(tokens, where, dropout_key, remat)
        return self._unembed(x), aux

    def hidden(
        self,
        tokens: jax.Array,
        where: Where | None = None,
        dropout_key: jax.Array | None = None,
        remat: str = "none",
    ) -> tuple[jax.Array, Aux]:
        """As a call, but the final norm's output [B, T, D], which the embedding turns into logits.

        remat: what the backward pass computes again (`train.remat`); the numbers are the same.
        """
        chex.assert_rank(tokens, 2)
        where = where or Where()
        keys: list[jax.Array | None] = [None] * (self.cfg.n_layers + 1)
        if dropout_key is not None and self.cfg.dropout > 0:
            keys = list(jax.random.split(dropout_key, self.cfg.n_layers + 1))
        x = stream.dropout(self._embed(tokens, where), self.cfg.dropout, keys[-1])
        if self.cfg.scan_layers and not self.is_initializing():
            x, aux = self._scan(x, where, keys[:-1], remat)
        else:
            each, call = [], rematerialized(remat)
            for i in range(self.cfg.n_layers):
                x, layer_aux = call(self._layer(i), x, where, keys[i], self._router_bias(i))
                each.append(layer_aux)
            routers = [layer_aux.router for layer_aux in each if layer_aux.router is not None]
            logit_max = jnp.stack([layer_aux.attn_logit_max for layer_aux in each])
            aux = Aux(logit_max, jax.tree.map(lambda *leaves: jnp.stack(leaves), *routers) if routers else None)
        return self.final_norm(x), aux

    def prefill(self, tokens: jax.Array, lengths: jax.Array, store: cache.Cache) -> tuple[jax.Array, cache.Cache]:
        """Right-padded prompts tokens [B, T], lengths [B] (1..T) -> logits [B, vocab] after each last token, cache.

        Entries at and after a row's length are undefined; decode overwrites each before reading it.
        """
        chex.assert_rank([tokens, lengths], [2, 1])
        x, where, stores = self._embed(tokens, Where()), Where(), []
        for i, layer_store in enumerate(store):
            x, layer_store = self._layer(i).prefill(x, where, layer_store, self._router_bias(i))
            stores.append(layer_store)
        last = jnp.take_along_axis(x, (lengths - 1)[:, None, None], axis=1)
        return self._logits(last)[:, 0], tuple(stores)

    def decode(
        self, tokens: jax.Array, start: jax.Array, store: cache.Cache, last: jax.Array | None = None
    ) -> tuple[jax.Array, cache.Cache]:
        """tokens [B, T] at positions start [B] .. start+T-1 -> logits [B, T, vocab], cache. T is 1 when sampling.

        With `last` [B] (0..T-1) only the logits after that token of each row: [B, 1, vocab]. A long prompt's next
        piece needs no others.
        """
        chex.assert_rank([tokens, start], [2, 1])
        packed = self.has_variable(serving.COLLECTION, serving.NAME)
        if packed and packed_decode.applies(self.backend, tokens.shape[1], store):
            return self._decode_packed(tokens, start, store)
        where = Where(positions=start[:, None] + jnp.arange(tokens.shape[1]))
        x, stores = self._embed(tokens, where), []
        for i, layer_store in enumerate(store):
            x, layer_store = self._layer(i).decode(x, start, layer_store, self._router_bias(i))
            stores.append(layer_store)
        if last is not None:
            x = jnp.take_along_axis(x, last[:, None, None], axis=1)
        return self._logits(x), tuple(stores)

    def _decode_packed(self, tokens: jax.Array, start: jax.Array, store: cache.Cache) -> tuple[jax.Array, cache.Cache]:
        """`decode` of one token a row, on the weights of `serving.pack`."""
        cfg, backend = self.cfg, self.backend
        weights = self.get_variable(serving.COLLECTION, serving.NAME)
        x, stores = self._embed(tokens, Where(positions=start[:, None]))[:, 0], []
        turn = packed_decode.angles(cfg, start)
        for i, (layer, layer_store) in enumerate(zip(weights.layers, store, strict=True)):
            x, layer_store = packed_decode.attention(cfg, backend, layer, x, start, turn, layer_store)
            if layer.ffn_in is not None:
                x = packed_decode.feed_forward(cfg, backend, layer, x)
            elif layer.experts is not None and x.shape[0] <= row_linear.MAX_ROWS:
                x = packed_decode.experts(cfg, backend, layer, x, self._router_biases(), self._moe_index(i))
            else:
                x = x + self._layer(i).feed_forward(x[:, None], self._router_bias(i))[:, 0]
            stores.append(layer_store)
        with jax.named_scope("logits"):
            table = Linear(self.embedding.astype(backend.jnp_dtype))
            logits = packed_decode.linear(x, table, backend, norm=weights.final_norm)
        return logits[:, None], tuple(stores)

    def _layer(self, index: int) -> Block:
        return getattr(self, f"layer_{index}")

    def _has_experts(self, index: int) -> bool:
        return index >= self.cfg.n_layers - self.cfg.n_moe_layers

    def _router_bias(self, index: int) -> jax.Array | None:
        """The row [E] of a layer, from the read-only collection that `variables_of` makes; None for a dense layer."""
        if not self._has_experts(index):
            return None
        if self.is_initializing():
            return initial_router_bias(self.cfg)[0]
        return self._router_biases()[self._moe_index(index)]

    def _router_biases(self) -> jax.Array:
        """[L_moe, E]."""
        if not self.has_variable("router", "bias"):
            raise ValueError("a model with experts needs its router bias: apply it to `variables`, not to `params`.")
        return self.get_variable("router", "bias")

    def _moe_index(self, index: int) -> int:
        """Which of the layers with experts a layer is."""
        return index - (self.cfg.n_layers - self.cfg.n_moe_layers)

    def _embed(self, tokens: jax.Array, where: Where) -> jax.Array:
        # Gather in float32, then cast: the gradient's scatter-add then uses the GPU's float32 atomics. In bfloat16
        # it is a compare-and-swap loop that took a third of the step (21 of 72 ms at size m on an H100).
        x = stream.whole(self.embedding, self.backend)[tokens]
        if self.cfg.position == "learned":
            table = stream.whole(self.position_embedding, self.backend)
            x = x + (table[: tokens.shape[1]] if where.positions is None else table[where.positions])
        return stream.residual(x.astype(self.backend.jnp_dtype), self.backend)

    def _logits(self, x: jax.Array) -> jax.Array:
        return self._unembed(self.final_norm(x))

    def _unembed(self, x: jax.Array) -> jax.Array:
        with jax.named_scope("logits"):
            return jnp.einsum("btd,vd->btv", x, self.embedding.astype(self.backend.jnp_dtype))

    def _scan(self, x: jax.Array, where: Where, keys: list[jax.Array | None], remat: str) -> tuple[jax.Array, Aux]:
        """The same layers by lax.scan over their stacked parameters: parameters are stored alike in both forms."""
        params = [self.variables["params"][f"layer_{i}"] for i in range(self.cfg.n_layers)]
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *params)
        block = Block(self.cfg, self.backend, self._has_experts(0), parent=None)  # config rules: all alike
        biases = self.get_variable("router", "bias") if self._has_experts(0) else None
        layer_keys = None if keys[0] is None else jnp.stack(keys)

        def body(carry: jax.Array, layer: tuple) -> tuple[jax.Array, Aux]:
            layer_params, key, router_bias = layer
            return block.apply({"params": layer_params}, carry, where, key, router_bias)

        if remat != "none":
            body = jax.checkpoint(body, policy=REMAT_POLICIES[remat], prevent_cse=False)
        return jax.lax.scan(body, x, (stacked, layer_keys, biases))
