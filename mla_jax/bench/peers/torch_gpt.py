"""A minimal GPT in torch: `block=gpt`, learned positions, MHA; the peer of our training step. Imports torch.

Pre-norm blocks of LayerNorm, fused-attention MHA and a tanh-GELU layer, biases everywhere, tied embeddings: the
architecture of GPT-2 (and of nanoGPT), with torch's own fast paths (scaled_dot_product_attention, fused AdamW).
"""

from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from mla_jax.config import Config, ModelConfig


class Block(nn.Module):
    """x [B, T, D] -> [B, T, D]."""

    def __init__(self, cfg: ModelConfig):
        super().__init__()
        width = cfg.d_model
        self.heads = cfg.n_heads
        self.attention_norm, self.ffn_norm = nn.LayerNorm(width, eps=1e-5), nn.LayerNorm(width, eps=1e-5)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.fc_in, self.fc_out = nn.Linear(width, cfg.d_ff), nn.Linear(cfg.d_ff, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        b, t, d = x.shape
        q, k, v = self.qkv(self.attention_norm(x)).split(d, dim=-1)
        q, k, v = (a.view(b, t, self.heads, d // self.heads).transpose(1, 2) for a in (q, k, v))
        y = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(y.transpose(1, 2).reshape(b, t, d))
        return x + self.fc_out(functional.gelu(self.fc_in(self.ffn_norm(x)), approximate="tanh"))


class Gpt(nn.Module):
    """tokens [B, T], targets [B, T] int64 -> mean negative log-likelihood, float32 []; `losses`: each one, [B, T]."""

    def __init__(self, cfg: ModelConfig):
        super().__init__()
        self.embedding = nn.Embedding(cfg.vocab_size, cfg.d_model)
        self.position = nn.Embedding(cfg.max_len, cfg.d_model)
        self.blocks = nn.ModuleList(Block(cfg) for _ in range(cfg.n_layers))
        self.final_norm = nn.LayerNorm(cfg.d_model, eps=1e-5)
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            elif parameter.ndim == 2:
                writes_residual = name.endswith(("out.weight", "fc_out.weight"))
                nn.init.normal_(parameter, std=cfg.init_std / ((2 * cfg.n_layers) ** 0.5 if writes_residual else 1))

    def forward(self, tokens: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return functional.cross_entropy(self.logits(tokens).flatten(0, 1), targets.flatten())

    def losses(self, tokens: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        logits = self.logits(tokens).flatten(0, 1)
        return functional.cross_entropy(logits, targets.flatten(), reduction="none").view_as(targets)

    def logits(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.embedding(tokens) + self.position.weight[: tokens.shape[1]]
        for block in self.blocks:
            x = block(x)
        return functional.linear(self.final_norm(x), self.embedding.weight)


def load_params(model: Gpt, params: Any) -> None:
    """Copy our parameters (a tree of float32 arrays, `attention=mha position=learned block=gpt`) into the peer."""

    def put(parameter: torch.nn.Parameter, array: Any) -> None:
        source = torch.from_numpy(np.array(array))
        assert source.shape == parameter.shape, (source.shape, parameter.shape)
        with torch.no_grad():
            parameter.copy_(source)

    def put_linear(linear: nn.Linear, weight: Any, bias: Any) -> None:
        put(linear.weight, np.asarray(weight).T)
        put(linear.bias, bias)

    def put_norm(norm: nn.LayerNorm, ours: Any) -> None:
        put(norm.weight, ours["gain"])
        put(norm.bias, ours["bias"])

    put(model.embedding.weight, params["embedding"])
    put(model.position.weight, params["position_embedding"])
    put_norm(model.final_norm, params["final_norm"])
    for i, block in enumerate(model.blocks):
        layer = params[f"layer_{i}"]
        attention, ffn = layer["attention"], layer["ffn"]
        put_norm(block.attention_norm, layer["attention_norm"])
        put_norm(block.ffn_norm, layer["ffn_norm"])
        width = block.out.weight.shape[0]
        weights = [np.asarray(attention[f"w_{name}"]).reshape(width, -1) for name in "qkv"]
        biases = [np.asarray(attention[f"b_{name}"]).reshape(-1) for name in "qkv"]
        put_linear(block.qkv, np.concatenate(weights, axis=1), np.concatenate(biases))
        put_linear(block.out, np.asarray(attention["w_o"]).reshape(-1, width), attention["b_o"])
        put_linear(block.fc_in, ffn["w_in"], ffn["b_in"])
        put_linear(block.fc_out, ffn["w_out"], ffn["b_out"])


def adamw(model: Gpt, config: Config, fused: bool) -> torch.optim.AdamW:
    """AdamW with our rule of what decays: matrices, not embeddings, norms and biases."""
    matrices, others = [], []
    for name, parameter in model.named_parameters():
        is_matrix = parameter.ndim == 2 and not name.startswith(("embedding", "position"))
        (matrices if is_matrix else others).append(parameter)
    o = config.optim
    groups = [{"params": matrices, "weight_decay": o.weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=o.learning_rate, betas=(o.beta1, o.beta2), eps=o.eps, fused=fused)


def step(model: Any, optimizer: torch.optim.AdamW, tokens: torch.Tensor, rate: float, clip: float) -> torch.Tensor:
    """One AdamW step on tokens [B, T+1] at a learning rate; returns the loss before it."""
    for group in optimizer.param_groups:
        group["lr"] = rate
    loss = model(tokens[:, :-1], tokens[:, 1:])
    loss.backward()
    if clip:
        nn.utils.clip_grad_norm_(model.parameters(), clip)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return loss.detach()
