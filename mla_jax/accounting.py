"""Closed forms: parameters, FLOPs per token and KV bytes per token of a resolved ModelConfig.

Tests hold each of them to the real arrays. `vocab_size` must be resolved (non-zero).
"""

from mla_jax.config import ModelConfig
from mla_jax.errors import UserError

DTYPE_BYTES = {"bfloat16": 2, "float32": 4}


def kv_numbers(cfg: ModelConfig) -> int:
    """Numbers that the KV cache holds for one token in one layer (design.md's grid)."""
    if cfg.attention != "mla":
        return 2 * cfg.n_kv_heads * cfg.head_dim
    if cfg.latent == "joint":
        return cfg.kv_lora_rank + cfg.qk_rope_head_dim
    return 2 * cfg.n_heads * cfg.kv_lora_rank + cfg.qk_rope_head_dim


def kv_bytes(cfg: ModelConfig, dtype: str = "bfloat16") -> int:
    """Bytes of KV cache per token, all layers together. dtype: bfloat16, float32, or int8 (latents only).

    int8: a byte a latent number, 2 a rotary one (bfloat16), and a float32 scale: one a token and layer (joint), or
    one each for the keys' and the values' latents (per head).
    """
    check_cache_dtype(cfg, dtype)
    if dtype != "int8" and dtype not in DTYPE_BYTES:
        raise UserError(f"dtype is {dtype!r}; it must be one of int8, {', '.join(DTYPE_BYTES)}: name what is stored.")
    if dtype == "int8":
        scales = 1 if cfg.latent == "joint" else 2
        return cfg.n_layers * (kv_numbers(cfg) + cfg.qk_rope_head_dim + 4 * scales)
    return kv_numbers(cfg) * cfg.n_layers * DTYPE_BYTES[dtype]


def check_cache_dtype(cfg: ModelConfig, dtype: str) -> None:
    """Raise UserError for a cache that `cfg` cannot have: int8 is for latents."""
    if dtype == "int8" and cfg.attention != "mla":
        raise UserError(
            f"cache_dtype is 'int8', which holds latents, and model.attention is {cfg.attention!r}: "
            "use auto, bfloat16 or float32."
        )


def mha_kv_bytes(cfg: ModelConfig, dtype: str = "bfloat16") -> int:
    """What multi-head attention of the same heads would hold: the 100 % of every cache comparison."""
    return 2 * cfg.n_heads * cfg.head_dim * cfg.n_layers * DTYPE_BYTES[dtype]


def attention_matrices(cfg: ModelConfig) -> int:
    """Matrix parameters of one attention layer."""
    d, h = cfg.d_model, cfg.n_heads
    if cfg.attention != "mla":
        return 2 * d * h * cfg.head_dim + 2 * d * cfg.n_kv_heads * cfg.head_dim
    queries = h * cfg.qk_head_dim * (cfg.q_lora_rank or d) + d * cfg.q_lora_rank
    rank = cfg.kv_lora_rank
    if cfg.latent == "joint":
        latents = d * rank + rank * h * (cfg.qk_nope_head_dim + cfg.v_head_dim)
    else:
        latents = 2 * d * h * rank + h * rank * (cfg.qk_nope_head_dim + cfg.v_head_dim)
    return queries + latents + d * cfg.qk_rope_head_dim + h * cfg.v_head_dim * d


def attention_vectors(cfg: ModelConfig) -> int:
    """Biases and gains inside one attention layer (not the block's own norms)."""
    total = 0
    if cfg.block == "gpt":
        total += cfg.n_heads * cfg.qk_head_dim + cfg.d_model
        if cfg.attention != "mla":
            total += 2 * cfg.n_kv_heads * cfg.head_dim
    if cfg.latent_norm == "rms":
        total += cfg.q_lora_rank + cfg.kv_lora_rank * (1 if cfg.latent == "joint" else 2)
    if cfg.qk_norm:
        nope = cfg.qk_nope_head_dim if cfg.attention == "mla" else cfg.head_dim
        total += 2 * nope + 2 * cfg.qk_rope_head_dim
    return total


def ffn_matrices(cfg: ModelConfig) -> int:
    """Matrix parameters of one dense feed-forward layer."""
    return _matrices(cfg) * cfg.d_model * cfg.d_ff


def moe_matrices(cfg: ModelConfig, active: bool = False) -> int:
    """Matrix parameters of one layer of experts, router included; `active`: of those that one token meets."""
    routed = cfg.top_k if active else cfg.n_routed_experts
    experts = (cfg.n_shared_experts + routed) * _matrices(cfg) * cfg.d_model * cfg.d_expert
    return experts + cfg.d_model * cfg.n_routed_experts


def _matrices(cfg: ModelConfig) -> int:
    """Matrices of a feed-forward layer or of an expert: GELU has 2, SwiGLU 3."""
    return 2 if cfg.block == "gpt" else 3


def _ffn(cfg: ModelConfig) -> int:
    """Parameters of all feed-forward and expert layers; with block=gpt biases, which routed experts do not have."""
    dense, moe = cfg.n_layers - cfg.n_moe_layers, cfg.n_moe_layers
    total = dense * ffn_matrices(cfg) + moe * (moe_matrices(cfg) if moe else 0)
    if cfg.block == "gpt":
        total += dense * (cfg.d_ff + cfg.d_model)
        if cfg.n_shared_experts:
            total += moe * (cfg.n_shared_experts * cfg.d_expert + cfg.d_model)
    return total


def params(cfg: ModelConfig) -> dict[str, int]:
    """Parameters by part: embedding, position, attention, ffn, norms, total, non_embedding, active.

    `non_embedding` leaves out the token embedding only, which is also the output matrix (tied). `active` leaves out
    the routed experts that a token does not go to: equal to `total` without experts. The router bias is in none.
    """
    norm = cfg.d_model * (2 if cfg.block == "gpt" else 1)
    parts = {
        "embedding": cfg.vocab_size * cfg.d_model,
        "position": cfg.max_len * cfg.d_model if cfg.position == "learned" else 0,
        "attention": cfg.n_layers * (attention_matrices(cfg) + attention_vectors(cfg)),
        "ffn": _ffn(cfg),
        "norms": norm * (2 * cfg.n_layers + 1),
    }
    total = sum(parts.values())
    idle = cfg.n_moe_layers * (moe_matrices(cfg) - moe_matrices(cfg, active=True))
    return parts | {"total": total, "non_embedding": total - parts["embedding"], "active": total - idle}


def flops_per_token(cfg: ModelConfig, seq_len: int) -> int:
    """Floating-point operations of one training step per token: forward and backward, 3 times the forward pass.

    A multiply-add counts as two; attention counts the full square, not the causal half, as PaLM (appendix B) and
    nanoGPT do, so that MFU compares with theirs; norms, biases and softmax are left out, recomputation too. Of
    experts it counts the ones that a token goes to, whatever path computes them.
    """
    value_dim = cfg.v_head_dim if cfg.attention == "mla" else cfg.head_dim
    attention = cfg.n_heads * (cfg.qk_head_dim + value_dim) * seq_len
    ffn = (cfg.n_layers - cfg.n_moe_layers) * ffn_matrices(cfg) + cfg.n_moe_layers * moe_matrices(cfg, active=True)
    layers = cfg.n_layers * (attention_matrices(cfg) + attention) + ffn
    return 3 * 2 * (layers + cfg.vocab_size * cfg.d_model)
