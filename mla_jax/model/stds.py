"""Standard deviations that matrices are drawn with (model/initial.py draws them)."""

import math

from mla_jax.config import ModelConfig


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
