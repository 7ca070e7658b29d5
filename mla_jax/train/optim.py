"""The optimizer: schedule, weight-decay mask, gradient clipping, AdamW or Muon, and the average of the weights."""

from typing import Any

import jax
import optax

from mla_jax.config import OptimConfig
from mla_jax.model import backend
from mla_jax.train import muon
from mla_jax.train.clip import clip_by_norm
from mla_jax.train.ema import with_average


def schedule(cfg: OptimConfig) -> optax.Schedule:
    """Warm up linearly to `learning_rate`, fall as `cfg.schedule` says, and stay at `final_fraction` of the peak from
    `decay_steps` on.

    `cosine`: half a cosine from the end of the warm-up. `wsd` (Hu et al. 2024, arXiv 2404.06395): hold the peak, then
    fall in a straight line over the last `decay_fraction` of `decay_steps`.
    """
    peak, end = cfg.learning_rate, cfg.learning_rate * cfg.final_fraction
    if cfg.schedule == "wsd":
        falling = min(max(1, round(cfg.decay_fraction * cfg.decay_steps)), cfg.decay_steps - cfg.warmup_steps)
        pieces = [optax.constant_schedule(peak), optax.linear_schedule(peak, end, falling)]
        boundaries = [cfg.decay_steps - falling]
        if cfg.warmup_steps:
            pieces.insert(0, optax.linear_schedule(0.0, peak, cfg.warmup_steps))
            boundaries.insert(0, cfg.warmup_steps)
        return optax.join_schedules(pieces, boundaries)
    return optax.warmup_cosine_decay_schedule(
        init_value=0.0 if cfg.warmup_steps else peak,
        peak_value=peak,
        warmup_steps=cfg.warmup_steps,
        decay_steps=cfg.decay_steps,
        end_value=end,
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


def optimizer_names(params: Any) -> Any:
    """For each parameter "muon" or "adamw": which of the two updates it when `optim.name` is muon."""
    axes, decays = muon.matrix_axes(params), decay_mask(params)  # the second names parameters that no rule knows
    return jax.tree.map(lambda _, a: "adamw" if a is None else "muon", decays, axes)


def make_optimizer(cfg: OptimConfig) -> optax.GradientTransformationExtraArgs:
    """AdamW (Loshchilov & Hutter 2019), or Muon for the hidden matrices, behind clipping by global norm.

    `update` takes that norm as `grad_norm` where it has been computed already.
    """
    clip = clip_by_norm(cfg.clip_norm) if cfg.clip_norm else optax.identity()
    rate = schedule(cfg)
    if cfg.name == "adamw":
        optimizer = optax.chain(clip, _adamw(cfg, rate))
    else:
        dtype = backend.default_dtype() if cfg.muon_dtype == "auto" else cfg.muon_dtype
        hidden = optax.chain(
            muon.scale_by_muon(cfg.muon_beta, dtype),
            optax.add_decayed_weights(cfg.weight_decay),
            optax.scale_by_learning_rate(rate),
        )
        rest = _adamw(cfg, lambda step: cfg.adamw_fraction * rate(step))
        optimizer = optax.chain(clip, optax.partition({"muon": hidden, "adamw": rest}, optimizer_names))
    return with_average(optimizer, cfg.ema_decay) if cfg.ema_decay else optax.with_extra_args_support(optimizer)


def _adamw(cfg: OptimConfig, rate: optax.Schedule) -> optax.GradientTransformation:
    return optax.adamw(rate, cfg.beta1, cfg.beta2, cfg.eps, weight_decay=cfg.weight_decay, mask=decay_mask)
