"""Losses that balance experts by gradient, to compare the selection bias with, and the router's entropy.

All in float32. Each is a mean, so that its size does not depend on the batch; a weight knob of 0 switches it off.
"""

import jax
import jax.numpy as jnp

from mla_jax.config import ModelConfig


def entropy(scores: jax.Array) -> jax.Array:
    """scores [N, E] -> mean over tokens of the entropy of scores / sum(scores), nats, []: log E is indifference."""
    p = jax.lax.stop_gradient(scores)
    p = p / (jnp.sum(p, axis=-1, keepdims=True) + 1e-20)
    return -jnp.mean(jnp.sum(p * jnp.log(p + 1e-20), axis=-1))


def balance_loss(scores: jax.Array, expert_idx: jax.Array, n_groups: int) -> jax.Array:
    """sum_e f_e P_e, mean over groups of tokens; 1 when the load is even, up to E / K when it is not.

    scores [N, E], expert_idx [N, K], N split into n_groups of neighbours: 1 gives the Switch Transformer's loss over
    the batch (Fedus et al. 2021, eqs. 4-6), one group a sequence DeepSeek-V3's sequence-wise loss (eqs. 17-20).
    f_e = E / (K n) times the tokens that chose e (no gradient), P_e = mean of scores_e / sum(scores).
    """
    n_tokens, n_experts = scores.shape
    p = scores / (jnp.sum(scores, axis=-1, keepdims=True) + 1e-20)
    p = jnp.mean(p.reshape(n_groups, -1, n_experts), axis=1)
    chosen = expert_idx.reshape(n_groups, -1)[..., None] == jnp.arange(n_experts)
    f = jnp.sum(chosen, axis=1, dtype=jnp.float32) * (n_experts * n_groups / (n_tokens * expert_idx.shape[1]))
    return jnp.mean(jnp.sum(f * p, axis=-1))


def z_loss(router_logits: jax.Array) -> jax.Array:
    """Mean of logsumexp(router_logits)^2, [] (Zoph et al. 2022, ST-MoE, eq. 5): keeps router logits small."""
    return jnp.mean(jnp.square(jax.nn.logsumexp(router_logits, axis=-1)))


def router_loss(
    router_logits: jax.Array, scores: jax.Array, expert_idx: jax.Array, rows: tuple[int, int], cfg: ModelConfig
) -> jax.Array:
    """The weighted sum of the losses that the config asks for, []; 0 by default. rows: (B, T), N = B T."""
    total = jnp.zeros((), jnp.float32)
    if cfg.router_aux_weight:
        total += cfg.router_aux_weight * balance_loss(scores, expert_idx, 1)
    if cfg.router_sequence_weight:
        total += cfg.router_sequence_weight * balance_loss(scores, expert_idx, rows[0])
    if cfg.router_z_weight:
        total += cfg.router_z_weight * z_loss(router_logits)
    return total
