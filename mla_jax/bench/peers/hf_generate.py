"""Hugging Face transformers' `generate`: static cache, compiled on a GPU, greedy; random weights of our sizes."""

import time
from typing import Any

from mla_jax.bench.timing import Timing
from mla_jax.config import ModelConfig
from mla_jax.errors import UserError


def measure(cfg: ModelConfig, family: str, batch: int, prompt: int, new: int, repeats: int) -> dict[str, Any]:
    """Metrics of the whole `generate` call: `batch` prompts of `prompt` tokens, exactly `new` greedy tokens each.

    family: "llama" (for MHA and GQA) or "deepseek_v3" (for joint MLA). bfloat16 on CUDA, float32 on a CPU, where
    nothing is compiled. Raises UserError where torch or transformers is missing.
    """
    try:
        import torch
        import transformers
    except ImportError:
        raise UserError(
            "the Hugging Face peer needs torch and transformers, which are not installed: "
            "pip install '.[hf]' in the checkout."
        ) from None
    cuda = torch.cuda.is_available()
    device, dtype = ("cuda", torch.bfloat16) if cuda else ("cpu", torch.float32)
    torch.manual_seed(0)
    model = build(cfg, family, prompt + new).to(device=device, dtype=dtype).eval()
    tokens = torch.randint(0, cfg.vocab_size, (batch, prompt), device=device)
    settings = {"do_sample": False, "max_new_tokens": new, "min_new_tokens": new, "use_cache": True}
    if cuda:
        settings["cache_implementation"] = "static"  # on CUDA generate compiles the decode step for it by itself

    def call() -> float:
        began = time.perf_counter()
        with torch.inference_mode():
            out = model.generate(tokens, attention_mask=torch.ones_like(tokens), pad_token_id=0, **settings)
        if cuda:
            torch.cuda.synchronize()
        assert out.shape == (batch, prompt + new)
        return time.perf_counter() - began

    first = call()
    call()
    timing = Timing.of([call() for _ in range(repeats)], first)
    return {
        **timing.metrics(),
        "tokens_per_s": batch * new / timing.median_s,
        "dtype": str(dtype).removeprefix("torch."),
        "peer_versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "peer_parameters": sum(p.numel() for p in model.parameters()),
    }


def build(cfg: ModelConfig, family: str, length: int) -> Any:
    """A transformers model of our sizes with random weights and tied embeddings."""
    import transformers

    common = {
        "vocab_size": cfg.vocab_size,
        "hidden_size": cfg.d_model,
        "intermediate_size": cfg.d_ff,
        "num_hidden_layers": cfg.n_layers,
        "num_attention_heads": cfg.n_heads,
        "max_position_embeddings": length,
        "tie_word_embeddings": True,
        "rms_norm_eps": 1e-6,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
    }
    if family == "llama":
        config = transformers.LlamaConfig(num_key_value_heads=cfg.n_kv_heads, head_dim=cfg.head_dim, **common)
        return transformers.LlamaForCausalLM(config)
    config = transformers.DeepseekV3Config(
        num_key_value_heads=cfg.n_heads,
        kv_lora_rank=cfg.kv_lora_rank,
        q_lora_rank=cfg.q_lora_rank or None,
        qk_nope_head_dim=cfg.qk_nope_head_dim,
        qk_rope_head_dim=cfg.qk_rope_head_dim,
        v_head_dim=cfg.v_head_dim,
        first_k_dense_replace=cfg.n_layers,  # no experts
        n_group=1,
        topk_group=1,
        **common,
    )
    return transformers.DeepseekV3ForCausalLM(config)
