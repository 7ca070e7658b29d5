"""Mixture of experts: the routing rule, the balance rule and the layer (DeepSeek-V3, arXiv 2412.19437).

Dims: N tokens (B T), D model, E routed experts, K of them a token (`top_k`), F hidden width of one expert.
"""

from typing import Any

import chex
import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct

from mla_jax import mesh
from mla_jax.config import ModelConfig
from mla_jax.kernels import best_experts
from mla_jax.model import feed_forward, initial, moe_balance, moe_choice, moe_parallel, moe_router, one_pass, stds
from mla_jax.model.backend import Backend
from mla_jax.model.experts import Experts
from mla_jax.model.moe_router import exact_product, top_choices


@struct.dataclass
class RouterAux:
    """What a layer's router tells about a forward pass; with [L_moe] in front when layers are stacked.

    expert_load [E] float32: tokens that chose each expert (padding included); router_entropy [] float32: nats of a
    token's scores over the experts, mean over tokens; router_loss [] float32: weighted auxiliary losses, 0 without
    any; expert_idx [B, T, K] int32 and expert_weight [B, T, K] float32: where each token went.
    """

    expert_load: jax.Array
    router_entropy: jax.Array
    router_loss: jax.Array
    expert_idx: jax.Array
    expert_weight: jax.Array


def router_scores(router_logits: jax.Array, cfg: ModelConfig) -> jax.Array:
    """Affinities of tokens and experts, float32, of the shape of router_logits [..., E]."""
    return moe_router.scores(router_logits.astype(jnp.float32), cfg.router_score)


def route(
    router_logits: jax.Array, router_bias: jax.Array, cfg: ModelConfig, backend: Backend | None = None
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Which experts a token goes to, and with which weight: the one rule, used by every path.

    router_logits [N, E], router_bias [E] -> expert_idx [N, K] int32 (the largest selection_scores = scores +
    router_bias, in descending order), expert_weight [N, K] float32 (the chosen experts' scores **without** the bias,
    divided by their sum if `router_renormalize`, times `routed_scaling_factor`), expert_load [E] float32 (counts).

    The bias only selects: no gradient reaches it (DeepSeek-V3, eq. 16; Wang et al. 2024, arXiv 2408.15664). An expert
    whose bias is -inf is masked: it is chosen only where fewer than K others exist, and then with weight 0.
    """
    chex.assert_rank([router_logits, router_bias], [2, 1])
    scores = router_scores(router_logits, cfg)
    expert_idx, expert_weight = _best(scores, jax.lax.stop_gradient(router_bias), cfg.top_k, backend)
    if cfg.router_renormalize:
        expert_weight = expert_weight / (jnp.sum(expert_weight, axis=-1, keepdims=True) + 1e-20)
    expert_load = jnp.sum(_one_hot(expert_idx, cfg.n_routed_experts), axis=(0, 1), dtype=jnp.float32)
    return expert_idx, expert_weight * cfg.routed_scaling_factor, expert_load


def _best(scores: jax.Array, bias: jax.Array, k: int, backend: Backend | None) -> tuple[jax.Array, jax.Array]:
    """The k experts of the largest scores [N, E] + bias [E], and their scores (0 where the bias is -inf): [N, K]."""
    if backend is not None and one_pass.in_one_pass(scores.shape, backend, best_experts.applies):

        def kernel(scores: jax.Array, bias: jax.Array) -> tuple[jax.Array, jax.Array]:
            return best_experts.best_experts(scores, bias, k, backend.interpret)

        return mesh.by_rows(kernel, backend.mesh, [scores], [bias])
    selection_scores = jax.lax.stop_gradient(scores) + bias
    expert_idx = top_choices(selection_scores, k)
    # [N, K, E], fused into the sums and never stored; the gradient is a sum as well, where an index makes a scatter.
    scores = jnp.where(selection_scores == -jnp.inf, 0.0, scores)
    return expert_idx, jnp.sum(jnp.where(_one_hot(expert_idx, scores.shape[1]), scores[:, None, :], 0.0), axis=-1)


def _one_hot(expert_idx: jax.Array, n_experts: int) -> jax.Array:
    return expert_idx[..., None] == jnp.arange(n_experts)


def router_bias_update(bias: jax.Array, expert_load: jax.Array, rate: float, rule: str = "sign") -> jax.Array:
    """The selection bias after one optimizer step: up for experts with less than the mean load, down for the others.

    bias, expert_load [..., E] float32, the load counted over the whole batch of all devices. rule: "sign" moves by
    `rate` whatever the distance (DeepSeek-V3, section 2.1.2), "proportional" by `rate` times the distance in units of
    the mean load. The result is recentred to zero mean: a common shift changes no choice, and would only grow until
    it eats the bias' precision. Masked experts (-inf) stay so and count for nothing. Rate 0 changes nothing.
    """
    if rate == 0:
        return bias
    live = jnp.isfinite(bias)
    n_live = jnp.maximum(jnp.sum(live, axis=-1, keepdims=True), 1)
    mean_load = jnp.sum(jnp.where(live, expert_load, 0.0), axis=-1, keepdims=True) / n_live
    distance = mean_load - expert_load
    move = jnp.sign(distance) if rule == "sign" else distance / jnp.maximum(mean_load, 1.0)
    moved = bias + rate * move
    centre = jnp.sum(jnp.where(live, moved, 0.0), axis=-1, keepdims=True) / n_live
    return jnp.where(live, moved - centre, bias)


def initial_router_bias(cfg: ModelConfig) -> jax.Array | None:
    """Zeros [L_moe, E] float32; None without experts."""
    return jnp.zeros((cfg.n_moe_layers, cfg.n_routed_experts), jnp.float32) if cfg.n_moe_layers else None


class MoE(nn.Module):
    """Shared experts as one wide feed-forward, plus top_k of E routed experts. x [B, T, D] -> [B, T, D].

    Parameters: `w_router` [D, E]; `w_up` [E, D, F], `w_down` [E, F, D] and, for SwiGLU, `w_gate` [E, D, F], with the
    expert axis leading (optimizers see stacks of matrices, meshes shard that axis); `shared`, a FeedForward of width
    n_shared_experts * d_expert. Routed experts have no biases, in either block. No token is ever dropped.
    """

    cfg: ModelConfig
    backend: Backend

    @nn.compact
    def __call__(self, x: jax.Array, router_bias: jax.Array) -> tuple[jax.Array, RouterAux]:
        """router_bias [E] float32. Returns the layer's output in the backend's dtype, and what the router did."""
        cfg, dtype = self.cfg, self.backend.jnp_dtype
        chex.assert_shape(router_bias, (cfg.n_routed_experts,))
        batch, length, width = x.shape
        w_router = self.param("w_router", initial.normal(cfg.init_std), (width, cfg.n_routed_experts))
        experts = self._experts(width, dtype)
        with jax.named_scope("router"):
            # Exact to float32: a bfloat16 logit of 1 is off by 0.4 %, more than a step of the bias.
            flat = x.reshape(batch * length, width)
            router_logits = exact_product(flat, w_router)
            expert_idx, expert_weight, expert_load = route(router_logits, router_bias, cfg, self.backend)
        impl = moe_choice.choose(cfg, moe_parallel.tokens_here(batch, length, self.backend), self.backend).impl
        shared = together = None
        if cfg.n_shared_experts:
            shared = feed_forward.FeedForward(cfg, self.backend, cfg.n_shared_experts * cfg.d_expert, name="shared")
            if moe_parallel.takes_shared(impl, batch, length, cfg, self.backend):
                together = shared.weights()
        with jax.named_scope("experts"):
            chosen = moe_parallel.Chosen(expert_idx, expert_weight)
            out = moe_parallel.routed(impl, flat, chosen, experts, self.backend, batch, together).reshape(x.shape)
        if shared is not None and together is None:
            with jax.named_scope("shared_experts"):
                out = out + shared(x)
        return out, self._aux(router_logits, expert_idx, expert_weight, expert_load, x.shape[:2])

    def _experts(self, width: int, dtype: Any) -> Experts:
        cfg = self.cfg
        shape = (cfg.n_routed_experts, width, cfg.d_expert)
        into, out_of = initial.normal(cfg.init_std), initial.normal(stds.residual_std(cfg))
        gate = self.param("w_gate", into, shape).astype(dtype) if cfg.block == "default" else None
        w_up = self.param("w_up", into, shape).astype(dtype)
        w_down = self.param("w_down", out_of, (shape[0], shape[2], shape[1])).astype(dtype)
        return Experts(gate, w_up, w_down)

    def _aux(
        self,
        router_logits: jax.Array,
        expert_idx: jax.Array,
        expert_weight: jax.Array,
        expert_load: jax.Array,
        rows: tuple[int, int],
    ) -> RouterAux:
        scores = router_scores(router_logits, self.cfg)
        loss = moe_balance.router_loss(router_logits, scores, expert_idx, rows, self.cfg)
        shape = (*rows, self.cfg.top_k)
        entropy = moe_balance.entropy(scores)
        return RouterAux(expert_load, entropy, loss, expert_idx.reshape(shape), expert_weight.reshape(shape))
