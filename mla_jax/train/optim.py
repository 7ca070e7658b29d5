"""The optimizer: learning-rate schedule, weight-decay mask, gradient clipping."""

from typing import Any

import jax
import optax

from mla_jax.config import OptimConfig


def schedule(cfg: OptimConfig) -> optax.Schedule:
    """Linear warm-up to `learning_rate`, cosine to `final_fraction` of it at `decay_steps`, constant after."""
    return optax.warmup_cosine_decay_schedule(
        init_value=0.0 if cfg.warmup_steps else cfg.learning_rate,
        peak_value=cfg.learning_rate,
        warmup_steps=cfg.warmup_steps,
        decay_steps=cfg.decay_steps,
        end_value=cfg.learning_rate * cfg.final_fraction,
    )


def decay_mask(params: Any) -> Any:
    """True for matrices (names `w_*`); False for embeddings, gains and biases. An unknown name is an error.

    Raises ValueError so that a new parameter cannot be decayed, or spared, by accident.
    """

    def decays(path: tuple, _: Any) -> bool:
        name = path[-1].key
        if name.startswith("w_"):
            return True
        if name.startswith("b_") or name in ("bias", "embedding", "position_embedding") or name.endswith("gain"):
            return False
        raise ValueError(f"parameter {name!r} matches no rule of decay_mask: name it w_*, b_* or *gain.")

    return jax.tree_util.tree_map_with_path(decays, params)


def make_optimizer(cfg: OptimConfig) -> optax.GradientTransformation:
    """AdamW (Loshchilov & Hutter 2019) behind clipping by global norm."""
    clip = optax.clip_by_global_norm(cfg.clip_norm) if cfg.clip_norm else optax.identity()
    adamw = optax.adamw(schedule(cfg), cfg.beta1, cfg.beta2, cfg.eps, weight_decay=cfg.weight_decay, mask=decay_mask)
    return optax.chain(clip, adamw)
