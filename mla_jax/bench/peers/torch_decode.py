"""An MHA decode loop in torch, as strong as torch.compile makes it: static cache, one CUDA graph a step, greedy.

RMSNorm, RoPE, SwiGLU and tied embeddings as in our default block. All rows stand at one position, as in the suite
decode, so that a step can be a fixed graph. Two ways to attend are timed and the faster one counts: with a mask over
the whole cache, and without one, which attends to the positions not written yet too: what a step costs at most
differs from a correct one's by those few positions, in torch's favour.
"""

import time
from typing import Any

from mla_jax import accounting
from mla_jax.bench.peers.torch_train import import_torch
from mla_jax.bench.timing import Timing
from mla_jax.config import ModelConfig
from mla_jax.errors import UserError

_TUNED_ROWS = 16


def measure(cfg: ModelConfig, batch: int, context: int, steps: int, repeats: int) -> dict[str, Any]:
    """Metrics of `steps` greedy steps of `batch` rows at the end of a cache of `context` positions, per step.

    bfloat16 and torch.compile with CUDA graphs on CUDA, products tuned ("max-autotune") up to 16 rows; above, where
    tuning chose cuBLAS for every product, after 10 s for each, cuBLAS at once. float32 and eager on a CPU. Raises
    UserError without torch or for anything but plain multi-head attention.
    """
    torch = import_torch()
    if cfg.attention != "mha" or cfg.position != "rope" or cfg.block != "default":
        raise UserError("the torch peer decodes mha with RoPE in the default block only: use the point mha_rope.")
    cuda = torch.cuda.is_available()
    ways = {way: _time(cfg, batch, context, steps, repeats, way, cuda) for way in ("masked", "whole cache")}
    way = min(ways, key=lambda name: ways[name]["ms"])
    step_bytes = ways[way].pop("step_bytes")
    return {
        **ways[way],
        "way": way,
        "other_ms": {name: found["ms"] for name, found in ways.items() if name != way},
        "tokens_per_s": batch / (ways[way]["ms"] / 1e3),
        "step_bytes": step_bytes,
        "bytes_per_s": step_bytes / (ways[way]["ms"] / 1e3),
        "dtype": "bfloat16" if cuda else "float32",
        "peer_versions": {"torch": torch.__version__},
    }


def _time(cfg: ModelConfig, batch: int, context: int, steps: int, repeats: int, way: str, cuda: bool) -> dict[str, Any]:
    import torch

    device, dtype = ("cuda", torch.bfloat16) if cuda else ("cpu", torch.float32)
    # Each call builds a class of its own, but its code is one object, and torch compiles an object 8 times at most.
    torch._dynamo.reset()
    torch.manual_seed(0)
    with torch.device(device):  # a CPU takes a minute to draw the cache of 1,024 rows
        model = build(cfg, batch, context).to(dtype=dtype).eval()
    mode = "max-autotune" if batch <= _TUNED_ROWS else "reduce-overhead"
    step = torch.compile(model, mode=mode, fullgraph=True) if cuda else model
    tokens = torch.zeros(batch, dtype=torch.long, device=device)
    positions = [torch.tensor(context - steps + i, device=device) for i in range(steps)]

    def call() -> float:
        if cuda:
            torch.cuda.synchronize()
        began = time.perf_counter()
        current = tokens
        with torch.inference_mode():
            for position in positions:
                current = step(current, position, way == "masked").clone()  # a graph's output is reused by the next
        if cuda:
            torch.cuda.synchronize()
        return time.perf_counter() - began

    first = call()
    call()
    call()
    timing = Timing.of([call() for _ in range(repeats)], first)
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    cache = accounting.kv_bytes(cfg, "bfloat16" if cuda else "float32") * batch * context
    return {
        **timing.metrics(steps),
        "step_bytes": int(weights + cache * (2 * context - steps + 1) / (2 * context)),
    }


def build(cfg: ModelConfig, batch: int, context: int) -> Any:
    """A torch module: (tokens [B], position [], masked) -> the likeliest next tokens [B]; its cache is its buffers."""
    import torch
    from torch import nn
    from torch.nn import functional

    heads, width = cfg.n_heads, cfg.head_dim

    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.ffn_norm = nn.RMSNorm(cfg.d_model, eps=1e-6), nn.RMSNorm(cfg.d_model, eps=1e-6)
            self.qkv = nn.Linear(cfg.d_model, 3 * heads * width, bias=False)
            self.out = nn.Linear(heads * width, cfg.d_model, bias=False)
            self.gate_up = nn.Linear(cfg.d_model, 2 * cfg.d_ff, bias=False)
            self.down = nn.Linear(cfg.d_ff, cfg.d_model, bias=False)
            self.register_buffer("k", torch.randn(batch, heads, context, width))
            self.register_buffer("v", torch.randn(batch, heads, context, width))

        def forward(self, x: Any, cos: Any, sin: Any, position: Any, mask: Any) -> Any:
            q, k, v = self.qkv(self.norm(x)).view(batch, 3, heads, 1, width).unbind(1)
            q, k = rotate(q, cos, sin), rotate(k, cos, sin)
            where = position.view(1)
            self.k.index_copy_(2, where, k)
            self.v.index_copy_(2, where, v)
            y = functional.scaled_dot_product_attention(q, self.k, self.v, attn_mask=mask)
            x = x + self.out(y.reshape(batch, heads * width))
            gate, up = self.gate_up(self.ffn_norm(x)).chunk(2, dim=-1)
            return x + self.down(functional.silu(gate) * up)

    def rotate(x: Any, cos: Any, sin: Any) -> Any:
        first, second = x.float().chunk(2, dim=-1)
        return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1).to(x.dtype)

    class Decoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(cfg.vocab_size, cfg.d_model)
            self.layers = nn.ModuleList(Layer() for _ in range(cfg.n_layers))
            self.norm = nn.RMSNorm(cfg.d_model, eps=1e-6)
            for parameter in self.parameters():
                if parameter.ndim == 2:
                    nn.init.normal_(parameter, std=cfg.init_std)

        def forward(self, tokens: Any, position: Any, masked: bool) -> Any:
            frequency = cfg.rope_theta ** (-torch.arange(0, width, 2, device=tokens.device).float() / width)
            angle = position.float() * frequency
            cos, sin = torch.cos(angle), torch.sin(angle)
            mask = None
            if masked:
                mask = (torch.arange(context, device=tokens.device) <= position).view(1, 1, 1, context)
            x = self.embedding(tokens)
            for layer in self.layers:
                x = layer(x, cos, sin, position, mask)
            return functional.linear(self.norm(x), self.embedding.weight).argmax(-1)

    return Decoder()
