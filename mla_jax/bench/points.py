"""What is measured: the variants of the decode grid, as configs; each differs from the others in attention alone."""

import dataclasses
from typing import Any

from mla_jax.config import Config, replace
from mla_jax.config_files import load_config
from mla_jax.model import backend as backend_lib
from mla_jax.model.transformer import Transformer

MHA, FULL_RANK, HEADLINE = "mha_rope", "mla r=d", "mla r=d/2"
PAIR = (MHA, HEADLINE)


@dataclasses.dataclass(frozen=True)
class Point:
    """A model to measure. run: the run folder that gave it, "" for a named config with random weights."""

    name: str
    config: Config
    run: str = ""

    @property
    def size(self) -> str:
        """What its model is but for attention, in words: only rows with the same are compared."""
        c = self.config.model
        parts = [f"{c.n_layers} x {c.d_model}"] + ([c.block] if c.block != "default" else [])
        parts += [f"ffn {c.d_ff}"] if c.n_moe_layers < c.n_layers else []
        if c.n_moe_layers:
            experts = f"{c.n_shared_experts} + {c.top_k} of {c.n_routed_experts} experts of {c.d_expert}"
            parts.append(f"{c.n_moe_layers} layers of {experts}")
        return ", ".join([*parts, f"{c.vocab_size} pieces"])

    def model(self, **knobs: Any) -> Transformer:
        """The model on this process's device, with other `model` knobs. Raises UserError as `backend.choose` does."""
        config = replace(self.config, **{f"model.{name}": value for name, value in knobs.items()})
        return Transformer(config.model, backend_lib.choose(config.model))


def grid(size: str, knobs: dict[str, Any]) -> list[Point]:
    """The grid of issue and papers at a size of configs/base.py; `knobs` are dotted and go to all points.

    MHA with and without RoPE; joint latents (decoupled RoPE) and per-head latents (learned positions, so that they
    absorb) at r = d, d/2, d/4, d/8; and GQA with 4, 2, 1 groups beside the joint latent that takes the same bytes.
    """
    base = load_config(f"mha_rope:{size}", **knobs).model
    width, head_dim, rope = base.d_model, base.head_dim, base.head_dim // 2
    points = [_point(name, name, size, knobs) for name in ("mha", "mha_rope")]
    for divisor, label in ((1, "d"), (2, "d/2"), (4, "d/4"), (8, "d/8")):
        rank = {"model.kv_lora_rank": width // divisor, "model.qk_rope_head_dim": rope}
        points.append(_point(f"mla r={label}", "mla_rope", size, knobs | rank))
        per_head = {"model.kv_lora_rank": max(1, head_dim // divisor), "model.position": "learned"}
        points.append(_point(f"per_head r={label}", "mla_per_head", size, knobs | per_head))
    for groups in (4, 2, 1):
        if base.n_heads % groups == 0 and groups < base.n_heads:
            points.append(_point(f"gqa{groups}", "gqa", size, knobs | {"model.n_kv_heads": groups}))
            rank = 2 * groups * head_dim - rope  # equal cache bytes
            if rank <= width:
                joint = {"model.kv_lora_rank": rank, "model.qk_rope_head_dim": rope}
                points.append(_point(f"mla r={rank} (as gqa{groups})", "mla_rope", size, knobs | joint))
    return points


def _point(label: str, name: str, size: str, knobs: dict[str, Any]) -> Point:
    return Point(label, load_config(f"{name}:{size}", **knobs))
