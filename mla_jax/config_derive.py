"""Values of a config that follow from others: what 0, "" and "auto" mean (configs/base.py says so in comments)."""

import dataclasses
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mla_jax.config import Config


# Knobs that `resolve` derives where they have their defaults of configs/base.py, or makes "none" where they do not
# apply: that two configs differ in one of them may follow from another difference (train/resume.py).
DERIVED = (
    "model.head_dim",
    "model.n_kv_heads",
    "model.latent",
    "model.kv_lora_rank",
    "model.qk_nope_head_dim",
    "model.qk_rope_head_dim",
    "model.v_head_dim",
    "model.latent_norm",
    "model.rope_placement",
    "model.d_ff",
)


def resolve(config: "Config") -> "Config":
    """Fill in derived values; what does not apply to the attention variant becomes 0 or "none". Idempotent."""
    model = config.model
    head_dim = model.head_dim or (model.d_model // model.n_heads if model.n_heads > 0 else 0)
    changes: dict[str, Any] = {"head_dim": head_dim}
    if model.attention == "mla":
        joint = model.latent == "joint"
        decoupled = model.position == "rope" and model.rope_placement == "decoupled"
        changes["kv_lora_rank"] = model.kv_lora_rank or (model.d_model // 2 if joint else head_dim // 2)
        changes["qk_nope_head_dim"] = model.qk_nope_head_dim or head_dim
        changes["v_head_dim"] = model.v_head_dim or head_dim
        if decoupled:
            changes["qk_rope_head_dim"] = model.qk_rope_head_dim or head_dim // 2
        if model.position != "rope":
            changes["rope_placement"] = "none"
        if model.latent_norm == "auto":
            changes["latent_norm"] = "rms" if joint else "none"
    else:
        changes |= {"latent": "none", "rope_placement": "none", "latent_norm": "none"}
        if model.attention == "mha":
            changes["n_kv_heads"] = model.n_kv_heads or model.n_heads
    if model.d_ff == 0:
        changes["d_ff"] = 4 * model.d_model if model.block == "gpt" else max(1, round(8 * model.d_model / 3 / 32)) * 32
    if model.ffn == "moe" and model.router_bias_rate == -1:
        # One step moves a selection score as far as 0.012 of a logit would: d score / d logit is 1/4 at sigmoid(0) and
        # near 1/E for a softmax over E experts, so a rate good for one is 15 times too large for the other at E = 62.
        # DeepSeek-V3 has 1e-3 over 10^5 steps. The bias has some 0.35 to go (docs/how-to/moe.md): 1e-3 takes 350 steps
        # to even the load, 3e-3 takes 200, and ends as even.
        softmax = model.router_score == "softmax"
        changes["router_bias_rate"] = 1.2e-2 / max(1, model.n_routed_experts) if softmax else 3e-3
    train, tokenizer = config.train, config.tokenizer
    decay_steps = config.optim.decay_steps or train.steps
    warmup_steps = config.optim.warmup_steps
    if warmup_steps == -1:
        warmup_steps = min(100, decay_steps // 10)
    if train.loss_chunks == 0:
        train = dataclasses.replace(train, loss_chunks=_loss_chunks(config))
    return dataclasses.replace(
        config,
        model=dataclasses.replace(model, **changes),
        train=train,
        tokenizer=dataclasses.replace(
            tokenizer, vocab_size=tokenizer.vocab_size or (8192 if config.data.path else 2048)
        ),
        optim=dataclasses.replace(config.optim, decay_steps=decay_steps, warmup_steps=warmup_steps),
        eval=dataclasses.replace(config.eval, batch_size=config.eval.batch_size or train.batch_size),
        checkpoint=dataclasses.replace(config.checkpoint, every=config.checkpoint.every or train.eval_every),
    )


def _loss_chunks(config: "Config") -> int:
    """The fewest parts of seq_len whose bfloat16 logits take at most 1 GiB; 0 while the vocabulary is not known."""
    train, rows = config.train, config.model.vocab_size
    if not rows or not 1 <= train.seq_len <= 2**20 or train.microbatches < 1:  # the rules refuse some of these
        return 0
    logits = train.batch_size // train.microbatches * train.seq_len * rows * 2
    divisors = (n for n in range(1, train.seq_len + 1) if train.seq_len % n == 0)
    return next((n for n in divisors if logits / n <= 2**30), train.seq_len)
