"""Every rule that a config must keep (`RULES`); those of single values are in `config_bounds`.

A rule is a function of a resolved Config that raises UserError: field, value, rule, remedy.
"""

import functools
from typing import TYPE_CHECKING, Any

from mla_jax import migrations
from mla_jax.bench import settings as bench_settings
from mla_jax.config_bounds import fail, get, ranges

if TYPE_CHECKING:
    from mla_jax.config import Config

# What only experts read. A knob that changes nothing is refused: who sets it believes that it does.
_EXPERTS = ("n_routed_experts", "n_shared_experts", "top_k", "d_expert", "first_k_dense")
_EXPERTS += ("router_aux_weight", "router_sequence_weight", "router_z_weight")
_EXPERTS += migrations.UNREAD_IF_DENSE


def heads(config: "Config") -> None:
    """Heads divide the width; key/value heads divide the heads."""
    m = config.model
    if m.d_model % m.n_heads and m.head_dim == m.d_model // m.n_heads:  # derived, and rounded down
        fail(
            config,
            "model.n_heads",
            f"it must divide model.d_model ({m.d_model})",
            "change one, or set head_dim",
        )
    if m.attention == "mha" and m.n_kv_heads != m.n_heads:
        fail(
            config,
            "model.n_kv_heads",
            f"mha has one per head ({m.n_heads})",
            "use attention=gqa or set it to 0",
        )
    if m.attention == "gqa" and (m.n_kv_heads == 0 or m.n_heads % m.n_kv_heads):
        divisors = [str(i) for i in range(1, m.n_heads + 1) if m.n_heads % i == 0]
        fail(
            config,
            "model.n_kv_heads",
            f"with gqa it must divide model.n_heads ({m.n_heads})",
            f"use {', '.join(divisors)}",
        )
    if m.attention == "mla" and m.n_kv_heads:
        fail(config, "model.n_kv_heads", "mla has no key/value heads", "set it to 0, or use attention=gqa")


def latents(config: "Config") -> None:
    """Latent fields belong to mla; ranks do not exceed what they compress."""
    m = config.model
    if m.attention != "mla":
        for name in ("kv_lora_rank", "q_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"):
            if getattr(m, name):
                fail(
                    config,
                    f"model.{name}",
                    f"attention={m.attention} has no latent",
                    "set it to 0, or attention=mla",
                )
        return
    if m.latent == "none":
        fail(config, "model.latent", "mla needs a latent", "use joint | per_head")
    for name in ("kv_lora_rank", "qk_rope_head_dim"):
        if not getattr(m, name) and (name == "kv_lora_rank" or m.rope_placement == "decoupled"):
            fail(config, f"model.{name}", "half of such a small width leaves nothing", "set it to 2 or more")
    if m.latent == "per_head" and m.q_lora_rank:
        fail(config, "model.q_lora_rank", "per_head latents leave queries uncompressed", "set it to 0")
    if m.kv_lora_rank > m.d_model:
        fail(config, "model.kv_lora_rank", f"a latent is no wider than d_model ({m.d_model})", "lower it")
    if m.q_lora_rank > m.d_model:
        fail(config, "model.q_lora_rank", f"a latent is no wider than d_model ({m.d_model})", "lower it")


def positions(config: "Config") -> None:
    """Rotary widths are even and exist only where something rotates."""
    m = config.model
    if m.attention == "mla" and m.position == "rope" and m.rope_placement == "none":
        fail(config, "model.rope_placement", "mla with rope needs a placement", "use decoupled | decompressed")
    if m.qk_rope_head_dim and not (m.position == "rope" and m.rope_placement == "decoupled"):
        fail(config, "model.qk_rope_head_dim", "only decoupled RoPE has a rotary key of its own", "set it to 0")
    if m.position == "rope":
        field = "head_dim"
        if m.attention == "mla":
            field = "qk_rope_head_dim" if m.rope_placement == "decoupled" else "qk_nope_head_dim"
        if getattr(m, field) % 2:
            fail(
                config,
                f"model.{field}",
                "RoPE rotates pairs, so the width must be even",
                "use an even number",
            )
    if config.train.seq_len > m.max_len:
        fail(
            config,
            "train.seq_len",
            f"it must not exceed model.max_len ({m.max_len})",
            "lower it",
            "raise --config.model.max_len",
        )


def experts(config: "Config") -> None:
    """Expert fields belong to ffn=moe, which needs them; a token's experts are among those that exist."""
    m = config.model

    def refuse(name: str, rule: str, remedy: str) -> None:
        fail(config, f"model.{name}", rule, remedy)

    if m.ffn == "dense":
        for name in _EXPERTS:
            default = _defaults()[name]
            if getattr(m, name) != default:
                refuse(name, "ffn=dense has no experts", f"set it to {default!r}, or --config.model.ffn=moe")
        return
    if not m.n_routed_experts:
        refuse(
            "n_routed_experts", "ffn=moe routes tokens to experts", "set it to at least 1, e.g. 62, or use ffn=dense"
        )
    if not 1 <= m.top_k <= m.n_routed_experts:
        refuse(
            "top_k",
            f"a token goes to at least 1 and at most model.n_routed_experts ({m.n_routed_experts}) experts",
            "set --config.model.top_k to such a number",
        )
    if not m.d_expert:
        refuse("d_expert", "an expert needs hidden units", "set it to at least 1, e.g. 256")
    if m.n_shared_experts > m.n_routed_experts:
        refuse(
            "n_shared_experts",
            f"shared experts are the smaller part: at most model.n_routed_experts ({m.n_routed_experts})",
            "lower it, or use ffn=dense for a model without routing",
        )
    if m.first_k_dense >= m.n_layers:
        refuse(
            "first_k_dense", f"it leaves no layer of model.n_layers ({m.n_layers}) to experts", "lower it, or ffn=dense"
        )
    if m.first_k_dense and m.scan_layers:
        refuse("first_k_dense", "scan_layers needs layers that are all alike", "set it to 0, or scan_layers=False")
    if -1 <= m.router_bias_rate < 0:
        refuse("router_bias_rate", "a rate is 0 (off) or more", "set it to such a number, or -1 for the default")


@functools.cache
def _defaults() -> dict[str, Any]:
    """The knobs of `model` in configs/base.py, the one home of defaults; they do not depend on the size here."""
    from mla_jax.config_files import base_config  # which stands on this module

    return base_config().model.to_dict()


def batches(config: "Config") -> None:
    """Microbatches divide the batch; the schedule ends after the warm-up."""
    t, o = config.train, config.optim
    if t.batch_size % t.microbatches:
        fail(
            config,
            "train.microbatches",
            f"it must divide train.batch_size ({t.batch_size})",
            "change one of them",
        )
    if t.loss_chunks and t.seq_len % t.loss_chunks:
        fail(
            config,
            "train.loss_chunks",
            f"it must divide train.seq_len ({t.seq_len})",
            "change one of them, or set it to 0",
        )
    if o.qk_clip and config.model.qk_norm:
        fail(config, "optim.qk_clip", "with model.qk_norm no weight changes the logits' size", "use one of the two")
    if o.warmup_steps >= o.decay_steps:
        fail(
            config,
            "optim.warmup_steps",
            f"the warm-up must end before optim.decay_steps ({o.decay_steps})",
            "lower --config.optim.warmup_steps or train longer",
        )


def meshes(config: "Config") -> None:
    """Each axis of the mesh divides what it splits. What depends on the devices is checked by mesh.py."""
    mesh, m, batch = config.mesh, config.model, config.train.batch_size
    splits = [("tensor", name, getattr(m, name)) for name in ("n_heads", "n_kv_heads", "d_ff", "d_expert")]
    splits += [("expert", "n_routed_experts", m.n_routed_experts)]
    splits += [("fsdp", name, getattr(m, name)) for name in ("d_model", "kv_lora_rank", "q_lora_rank")]
    for axis, name, length in splits:
        if length % getattr(mesh, axis):
            fail(config, f"mesh.{axis}", f"it splits model.{name} ({length}) and must divide it", "change one of them")
    if mesh.expert > 1 and m.ffn != "moe":
        fail(config, "mesh.expert", f"model.ffn is {m.ffn}, which has no experts to split", "set it to 1")
    shards = max(1, mesh.data) * mesh.fsdp * mesh.expert
    for field in ("train.batch_size", "eval.batch_size"):
        if get(config, field) % shards:
            fail(
                config, field, f"mesh data x fsdp x expert splits it into {shards} parts", "make it a multiple of that"
            )
    if batch // config.train.microbatches % shards:
        fail(
            config,
            "train.microbatches",
            f"mesh data x fsdp x expert splits each of batch_size/microbatches = {batch // config.train.microbatches} "
            f"rows into {shards} parts",
            "lower one of them",
        )


def places(config: "Config") -> None:
    """A held-out file needs a training file; a sampler needs room; steps to keep are steps."""
    if any(step < 1 for step in config.checkpoint.keep_steps):
        fail(config, "checkpoint.keep_steps", "steps count from 1", "list positive steps, e.g. (100, 500)")
    if config.data.valid_path and not config.data.path:
        fail(config, "data.valid_path", "it goes with data.path, which is empty", "set --config.data.path too")
    if config.sample.max_new_tokens >= config.model.max_len:
        fail(
            config,
            "sample.max_new_tokens",
            f"a sample must fit in model.max_len ({config.model.max_len})",
            "lower it",
            "raise --config.model.max_len",
        )
    if config.sample.cache_dtype == "int8" and config.model.attention != "mla":
        fail(
            config,
            "sample.cache_dtype",
            f"it holds latents, and model.attention is {config.model.attention}",
            "use auto, bfloat16 or float32",
        )
    if "" in config.sample.stop:
        fail(config, "sample.stop", "an empty string stops nothing", "leave it out")


RULES = (ranges, heads, latents, positions, experts, batches, meshes, places, bench_settings.check)
