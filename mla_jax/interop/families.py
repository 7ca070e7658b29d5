"""Which Hugging Face architecture computes what a config computes, and the config.json of each, both ways.

* joint MLA with decoupled RoPE and RMS-normed latents, default block, dense or experts -> DeepseekV3ForCausalLM
* MHA and GQA with RoPE, default block -> LlamaForCausalLM
* MHA with learned positions, block=gpt -> GPT2LMHeadModel

Nothing else has an equal there. Dropout, initialisation and dtype settings concern training, not the function.
"""

from typing import Any

from mla_jax.config import ModelConfig
from mla_jax.errors import UserError
from mla_jax.model.functions import LAYER_NORM_EPS, RMS_EPS

DEEPSEEK, LLAMA, GPT2 = "DeepseekV3ForCausalLM", "LlamaForCausalLM", "GPT2LMHeadModel"
MODEL_TYPES = {DEEPSEEK: "deepseek_v3", LLAMA: "llama", GPT2: "gpt2"}
TIED_UNLESS_SAID = {DEEPSEEK: False, LLAMA: False, GPT2: True}  # transformers' defaults of tie_word_embeddings


def family(cfg: ModelConfig) -> str:
    """The architecture's name. Raises UserError, with the reason, for a config that none computes."""
    if cfg.qk_norm:
        _refuse("model.qk_norm", cfg.qk_norm, "the three architectures do not normalise queries and keys per head")
    if cfg.attention == "mla":
        return _mla_family(cfg)
    if cfg.ffn != "dense":
        _refuse("model.ffn", cfg.ffn, "only DeepseekV3ForCausalLM has our kind of experts, and its attention is MLA")
    if cfg.block == "gpt":
        if cfg.attention != "mha" or cfg.n_kv_heads != cfg.n_heads:
            _refuse("model.attention", cfg.attention, "GPT2LMHeadModel (block=gpt) has as many key heads as queries")
        if cfg.position != "learned":
            _refuse("model.position", cfg.position, "GPT2LMHeadModel (block=gpt) knows learned positions only")
        if cfg.head_dim * cfg.n_heads != cfg.d_model:
            _refuse("model.head_dim", cfg.head_dim, "GPT2LMHeadModel (block=gpt) has head_dim = d_model / n_heads")
        return GPT2
    if cfg.position != "rope":
        _refuse("model.position", cfg.position, "LlamaForCausalLM (MHA and GQA, default block) knows RoPE only")
    if cfg.d_model % cfg.n_heads:
        _refuse("model.n_heads", cfg.n_heads, f"LlamaForCausalLM asks for a divisor of d_model ({cfg.d_model})")
    return LLAMA


def _mla_family(cfg: ModelConfig) -> str:
    if cfg.latent != "joint":
        _refuse("model.latent", cfg.latent, "DeepseekV3ForCausalLM has one joint latent for all heads")
    if cfg.position != "rope":
        _refuse("model.position", cfg.position, "DeepseekV3ForCausalLM knows RoPE only")
    if cfg.rope_placement != "decoupled":
        _refuse(
            "model.rope_placement", cfg.rope_placement, "DeepseekV3ForCausalLM rotates a key of its own (decoupled)"
        )
    if cfg.latent_norm != "rms":
        _refuse("model.latent_norm", cfg.latent_norm, "DeepseekV3ForCausalLM normalises its latents (rms)")
    if cfg.block != "default":
        _refuse("model.block", cfg.block, "DeepseekV3ForCausalLM has RMSNorm, SwiGLU and no biases (default)")
    if cfg.ffn == "moe":
        _check_experts(cfg)
    return DEEPSEEK


def _check_experts(cfg: ModelConfig) -> None:
    if cfg.router_score != "sigmoid":
        _refuse("model.router_score", cfg.router_score, "DeepseekV3ForCausalLM scores experts by a sigmoid")
    if cfg.n_routed_experts < 2:
        _refuse("model.n_routed_experts", cfg.n_routed_experts, "DeepseekV3ForCausalLM chooses among two or more")


def _refuse(field: str, value: Any, reason: str) -> None:
    raise UserError(f"{field} is {value!r}, so this run cannot be exported: {reason}. Use it with mla_jax.")


def hf_config(cfg: ModelConfig, separator_id: int, dtype: str = "float32") -> dict[str, Any]:
    """The content of config.json. `dtype`: of the weights beside it. Raises UserError as `family` does."""
    name = family(cfg)
    common = {
        "architectures": [name],
        "model_type": MODEL_TYPES[name],
        "vocab_size": cfg.vocab_size,
        "tie_word_embeddings": True,
        "initializer_range": cfg.init_std,
        "bos_token_id": separator_id,
        "eos_token_id": separator_id,
        "use_cache": True,
        "dtype": dtype,
    }
    return common | {DEEPSEEK: _deepseek, LLAMA: _llama, GPT2: _gpt2}[name](cfg)


def _llama(cfg: ModelConfig) -> dict[str, Any]:
    return _rotary(cfg) | {
        "head_dim": cfg.head_dim,
        "num_key_value_heads": cfg.n_kv_heads,
        "attention_bias": False,
        "mlp_bias": False,
    }


def _deepseek(cfg: ModelConfig) -> dict[str, Any]:
    return _rotary(cfg) | {
        "num_key_value_heads": cfg.n_heads,
        "attention_bias": False,
        "kv_lora_rank": cfg.kv_lora_rank,
        "q_lora_rank": cfg.q_lora_rank or None,
        "qk_nope_head_dim": cfg.qk_nope_head_dim,
        "qk_rope_head_dim": cfg.qk_rope_head_dim,
        "v_head_dim": cfg.v_head_dim,
        "rope_interleave": True,  # DeepSeek's order of the rotary rows; `weights` permutes ours into it
        "num_nextn_predict_layers": 0,
        **_experts(cfg),
    }


def _experts(cfg: ModelConfig) -> dict[str, Any]:
    if cfg.ffn == "dense":
        return {"first_k_dense_replace": cfg.n_layers}
    return {
        "first_k_dense_replace": cfg.first_k_dense,
        "moe_intermediate_size": cfg.d_expert,
        "n_routed_experts": cfg.n_routed_experts,
        "n_shared_experts": cfg.n_shared_experts,
        "num_experts_per_tok": cfg.top_k,
        "norm_topk_prob": cfg.router_renormalize,
        "routed_scaling_factor": cfg.routed_scaling_factor,
        "scoring_func": "sigmoid",  # not read by transformers, but by others
        "topk_method": "noaux_tc",
        "n_group": 1,  # no groups: every expert can be chosen
        "topk_group": 1,
    }


def _rotary(cfg: ModelConfig) -> dict[str, Any]:
    return {
        "hidden_size": cfg.d_model,
        "intermediate_size": cfg.d_ff,
        "num_hidden_layers": cfg.n_layers,
        "num_attention_heads": cfg.n_heads,
        "max_position_embeddings": cfg.max_len,
        "hidden_act": "silu",
        "rms_norm_eps": RMS_EPS,
        "attention_dropout": 0.0,
        "rope_theta": cfg.rope_theta,
        "rope_scaling": None,
    }


def _gpt2(cfg: ModelConfig) -> dict[str, Any]:
    return {
        "n_embd": cfg.d_model,
        "n_inner": cfg.d_ff,
        "n_layer": cfg.n_layers,
        "n_head": cfg.n_heads,
        "n_positions": cfg.max_len,
        "activation_function": "gelu_new",
        "layer_norm_epsilon": LAYER_NORM_EPS,
        "embd_pdrop": cfg.dropout,
        "resid_pdrop": cfg.dropout,
        "attn_pdrop": 0.0,
        "scale_attn_weights": True,
        "scale_attn_by_inverse_layer_idx": False,
        "reorder_and_upcast_attn": False,
        "add_cross_attention": False,
    }
