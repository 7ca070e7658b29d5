"""Which path computes the routed experts: a cost rule with measured rates, a pure function of config, size and device.

Start-up prints its answer for training and for decode; the layer asks it again for the shape that it is traced with.
"""

import dataclasses

from mla_jax.config import ModelConfig
from mla_jax.model.backend import Backend


@dataclasses.dataclass(frozen=True)
class Rates:
    """What a device was seen to do, forward and backward together.

    dense, grouped: FLOP/s of large dense and of grouped products; move: bytes/s of gathering rows or matrices;
    sort_s: seconds that sorting and laying out a choice of experts takes whatever its size; tile: a grouped product
    pays for so many columns at least; passes: how often a masked dense layer reads or writes its hidden units; ragged:
    how many times as long it takes where all experts' hidden units together are not a multiple of 8.
    """

    dense: float
    grouped: float
    move: float
    sort_s: float
    tile: int
    passes: int
    ragged: float


# gpu: one H100, bfloat16, launch/moe_layer.py with the Pallas kernels (docs/results/moe_gpu.md): widths 512 and 256
# give 275 TFLOP/s beside 1.4 ms for 65,536 tokens, width 32 of masked dense the passes. A large dense product: 589.
# kernels/masked_hidden.py made masked dense faster than this says, and the grouped kernels are faster too, so that the
# order is right: an H200 takes 1.80 ms masked and 2.08 grouped at width 32, 2.81 and 2.03 at 64.
# ragged: 62 experts of width 31, 1,922 columns, take 3.24 ms masked, those of width 32 1.80: cuBLAS wants rows of 16
# bytes.
# tpu: not measured; the GPU's figures stand in for them.
# cpu: two cores in float32; launch/moe_layer.py gave the ratios, on a busy machine.
_GPU = Rates(dense=589e12, grouped=275e12, move=2.5e12, sort_s=1e-4, tile=128, passes=8, ragged=1.8)
_CPU = Rates(dense=25e9, grouped=20e9, move=2e9, sort_s=1e-3, tile=1, passes=0, ragged=1)
RATES = {"gpu": _GPU, "tpu": _GPU, "cpu": _CPU}


@dataclasses.dataclass(frozen=True)
class Choice:
    """impl: a key of `moe_paths.PATHS`; reason: why, for the start-up report."""

    impl: str
    reason: str


def costs(cfg: ModelConfig, n_tokens: int, backend: Backend) -> dict[str, float]:
    """Estimated seconds of one layer's routed part, forward and backward over n_tokens, by path."""
    rates = RATES[backend.platform if backend.platform in RATES else "gpu"]
    item = 2 if backend.dtype == "bfloat16" else 4
    matrices = 2 if cfg.block == "gpt" else 3
    one = matrices * cfg.d_model * cfg.d_expert  # parameters of one expert
    choices = n_tokens * cfg.top_k
    all_experts = cfg.n_routed_experts * one * item / rates.move
    tiled = one * max(cfg.d_expert, rates.tile) / cfg.d_expert
    units = cfg.n_routed_experts * cfg.d_expert
    masked = (
        6 * n_tokens * cfg.n_routed_experts * one / rates.dense + rates.passes * n_tokens * units * item / rates.move
    )
    return {
        "masked_dense": all_experts + masked * (rates.ragged if units % 8 else 1),
        "grouped": all_experts
        + 6 * choices * tiled / rates.grouped
        + 8 * choices * cfg.d_model * item / rates.move
        + rates.sort_s,
        # A copy of each chosen matrix is written and read again. Its products are bound by that, not by arithmetic.
        "gathered": 3 * choices * one * item / rates.move,
    }


def choose(cfg: ModelConfig, n_tokens: int, backend: Backend) -> Choice:
    """The path for n_tokens at a time: what `model.moe_impl` says, or the cheapest by `costs`."""
    if cfg.moe_impl != "auto":
        return Choice(cfg.moe_impl, f"model.moe_impl={cfg.moe_impl}")
    estimates = costs(cfg, n_tokens, backend)
    best = min(estimates, key=estimates.__getitem__)
    others = ", ".join(f"{name} {1e3 * seconds:.3g}" for name, seconds in estimates.items())
    return Choice(best, f"estimated ms a layer: {others}")
