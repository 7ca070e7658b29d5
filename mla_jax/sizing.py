"""Models of matched size: the feed-forward or expert width at which a closed form of `accounting` meets a target.

matched = match_total_params(load_config("moe_mla_rope", **{"model.vocab_size": 8192}), 32_530_000)
matched.config, matched.width, matched.residual
"""

import dataclasses
import math
from collections.abc import Callable

from mla_jax import accounting
from mla_jax.config import Config, ModelConfig, replace
from mla_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Match:
    """config: valid, with the width found; knob: the one that was turned; achieved: the quantity at that width.

    residual: achieved / target - 1; "matched" in this project means within 0.5 %.
    """

    config: Config
    knob: str
    width: int
    achieved: int
    target: int

    @property
    def residual(self) -> float:
        return self.achieved / self.target - 1


def match_total_params(config: Config, target: int, multiple: int = 1, knob: str = "") -> Match:
    """The config whose total number of parameters is nearest to `target`: see `match`."""
    return match(config, target, lambda model: accounting.params(model)["total"], multiple, knob)


def match_active_params(config: Config, target: int, multiple: int = 1, knob: str = "") -> Match:
    """The config whose parameters that one token meets are nearest to `target`: see `match`."""
    return match(config, target, lambda model: accounting.params(model)["active"], multiple, knob)


def match_flops(config: Config, target: int, multiple: int = 1, knob: str = "") -> Match:
    """The config whose training FLOPs per token at `train.seq_len` are nearest to `target`: see `match`."""
    return match(config, target, lambda model: accounting.flops_per_token(model, config.train.seq_len), multiple, knob)


def match(config: Config, target: int, quantity: Callable[[ModelConfig], int], multiple: int, knob: str = "") -> Match:
    """Turns `knob`, in steps of `multiple`, until `quantity` is nearest.

    `multiple` is raised to what `mesh.tensor` divides. knob: "model.d_expert" or "model.d_ff"; by default the one of
    most layers. d_ff is the finer one: of a model with experts it is the width of its `first_k_dense` layers alone,
    and leaves a few hundredths of a per cent.
    Every quantity here is linear in the width, so two evaluations give the answer and two more round it. Raises
    UserError when `model.vocab_size` is not known yet, the knob changes nothing, or the target is no positive number or
    below the model with the smallest width.
    """
    knob = knob or ("model.d_expert" if config.model.ffn == "moe" else "model.d_ff")
    if not config.model.vocab_size:
        raise UserError("model.vocab_size is 0 (the tokenizer's); sizes cannot be matched before it is known: set it.")

    if not 0 < target < math.inf:
        raise UserError(f"the target is {target}; it must be a positive number: give a count of parameters or FLOPs.")
    multiple = math.lcm(multiple, config.mesh.tensor)  # which splits the width

    def at(width: int) -> tuple[Config, int]:
        changed = replace(config, **{knob: width})
        return changed, quantity(changed.model)

    (_, one), (_, two) = at(multiple), at(2 * multiple)
    if one == two:
        raise UserError(f"{knob} changes nothing of this model: set model.first_k_dense=1, or turn model.d_expert.")
    steps = (target - one) / (two - one) + 1  # of `multiple`, not whole
    if steps < 0.5:
        raise UserError(
            f"the target is {target:,}, but this model has {one:,} with {knob}={multiple} already: "
            "use a smaller model, or fewer or narrower experts."
        )
    candidates = sorted({max(1, int(steps)), int(steps) + 1})
    width = multiple * min(candidates, key=lambda count: abs(at(multiple * count)[1] - target))
    matched, achieved = at(width)
    return Match(matched, knob, width, achieved, target)
