"""Writes hf_*.npz: tiny random models of transformers, tokens and the logits that transformers computes for them.

    pip install '.[hf]' in the checkout && python tests/golden/make_hf.py

Nothing of mla_jax is used: configs, tensor names and order of rows are transformers' own. Gains, biases and latent
norms are random, since ones and zeros hide mistakes.
"""

import json
import tempfile
from pathlib import Path

import numpy as np
import safetensors.numpy
import torch
import transformers

GOLDEN = Path(__file__).parent
_SHARED = {"vocab_size": 40, "bos_token_id": 1, "eos_token_id": 1}
_ROTARY = _SHARED | {
    "hidden_size": 24,
    "intermediate_size": 20,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "max_position_embeddings": 32,
    "tie_word_embeddings": True,
    "rope_parameters": {"rope_type": "default", "rope_theta": 500.0},
    "rms_norm_eps": 1e-6,
}
_MLA = _ROTARY | {
    "num_key_value_heads": 3,
    "kv_lora_rank": 10,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 6,
    "v_head_dim": 7,
    "first_k_dense_replace": 2,
}
_MOE = _MLA | {
    "n_routed_experts": 6,
    "n_shared_experts": 2,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 9,
    "first_k_dense_replace": 1,
    "n_group": 1,
    "topk_group": 1,
}
CONFIGS = {
    "deepseek": transformers.DeepseekV3Config(**_MLA, q_lora_rank=None),
    "deepseek_q_lora": transformers.DeepseekV3Config(**_MLA, q_lora_rank=11),
    "deepseek_half_split": transformers.DeepseekV3Config(**_MLA, q_lora_rank=None, rope_interleave=False),
    "deepseek_moe": transformers.DeepseekV3Config(**_MOE, q_lora_rank=11, routed_scaling_factor=2.5),
    "deepseek_moe_raw": transformers.DeepseekV3Config(
        **(_MOE | {"first_k_dense_replace": 0, "n_shared_experts": 1}), q_lora_rank=None, norm_topk_prob=False
    ),
    "llama_mha": transformers.LlamaConfig(**_ROTARY),
    "llama_gqa": transformers.LlamaConfig(**(_ROTARY | {"num_attention_heads": 4}), num_key_value_heads=2, head_dim=10),
    "gpt2": transformers.GPT2Config(**_SHARED, n_positions=32, n_embd=24, n_layer=2, n_head=3, n_inner=20),
}


def randomise(model: torch.nn.Module) -> None:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if not tensor.is_floating_point() or "inv_freq" in name:
                continue
            is_gain = tensor.dim() == 1 and name.endswith("weight")
            tensor.copy_(0.2 * torch.randn(tensor.shape, generator=generator) + (1 if is_gain else 0))


def main() -> None:
    tokens = np.random.default_rng(0).integers(0, 40, (2, 20))
    for name, config in CONFIGS.items():
        config._attn_implementation = config._experts_implementation = "eager"
        model = transformers.AutoModelForCausalLM.from_config(config).eval()
        randomise(model)
        with torch.no_grad():
            logits = model(torch.tensor(tokens)).logits.numpy()
        with tempfile.TemporaryDirectory() as folder:
            model.save_pretrained(folder)
            tensors = safetensors.numpy.load_file(Path(folder) / "model.safetensors")
            text = (Path(folder) / "config.json").read_text()
        content = {"tensor:" + key: value for key, value in tensors.items()}
        text = json.dumps(json.loads(text))
        np.savez_compressed(GOLDEN / f"hf_{name}.npz", config=text, tokens=tokens, logits=logits, **content)
        print(f"{name}: {len(tensors)} tensors, logits up to {np.abs(logits).max():.2f}")


if __name__ == "__main__":
    main()
