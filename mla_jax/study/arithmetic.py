"""What arithmetic alone says about the papers' claims: cache shares, active parameters, combinations."""

import functools
import math

from mla_jax import accounting
from mla_jax.config import ModelConfig
from mla_jax.config_files import load_config

PAPER_VOCABULARY = 50_000
MB_PER_TOKEN = 0.0288  # paper A's table, MHA
CANNOT, HOLDS = "cannot be as stated", "confirmed (by arithmetic)"


@functools.lru_cache(maxsize=64)
def model(name: str, **knobs: object) -> ModelConfig:
    """The papers' block at 50,000 embedding rows; knobs of `model`."""
    values = {"block": "gpt", "vocab_size": PAPER_VOCABULARY} | knobs
    return load_config(
        name, **{"tokenizer.vocab_size": PAPER_VOCABULARY} | {f"model.{k}": v for k, v in values.items()}
    ).model


def saved(cfg: ModelConfig) -> float:
    """Per cent of MHA's KV cache that a model does without."""
    return 100 * (1 - accounting.kv_numbers(cfg) / (2 * cfg.n_heads * cfg.head_dim))


def _per_head(part: int, rope: int) -> float:
    if not rope:
        return saved(model("mla_per_head:m", kv_lora_rank=64 // part))
    knobs = {"kv_lora_rank": 64 // part, "rope_placement": "decoupled", "qk_rope_head_dim": rope}
    return saved(model("mla_per_head:m", **knobs))


def cache_45() -> tuple[str, str | None]:
    """Paper A's equations cache two latents a head: 2 H r numbers."""
    text = (
        f"its equations (2 H r, r = d_k/2) save {_per_head(2, 0):.1f} %; with a shared rotary key of 32 or 64 numbers "
        f"{_per_head(2, 32):.1f} % or {_per_head(2, 64):.1f} %"
    )
    return text, CANNOT


def cache_72() -> tuple[str, str | None]:
    """The same at r = d_k/4: one reading fits, and it is not the one that its equations give."""
    text = (
        f"its equations save {_per_head(4, 0):.1f} %; with a shared rotary key of 32 numbers {_per_head(4, 32):.1f} %, "
        f"but that key gives {_per_head(2, 32):.1f} % at d/2, not 45 %: no one key width fits both"
    )
    return text, CANNOT


def megabytes() -> tuple[str, str | None]:
    """0.0288 MB a token: which model of the ladder would that be?"""
    sizes = []
    for size in ("xs", "s", "m", "l", "xl"):
        cfg = model(f"mha:{size}")
        sizes += [accounting.kv_bytes(cfg, dtype) / 1e6 for dtype in ("bfloat16", "float32")]
    nearest = min(sizes, key=lambda mb: abs(mb - MB_PER_TOKEN))
    fits = abs(nearest - MB_PER_TOKEN) < 0.0005
    listed = ", ".join(f"{mb:.4f}" for mb in sorted(set(sizes)))
    return f"MHA of the ladder takes {listed} MB in 16 or 32 bits", None if fits else CANNOT


def cache_68() -> tuple[str, str | None]:
    """DeepSeek's form at d/2 with a rotary key as wide as a head."""
    share = saved(model("mla_rope_paper_b:m"))
    per_head = saved(model("mla_per_head:m"))
    text = f"a joint latent of d/2 and a rotary key of d_h save {share:.2f} % (paper A's form: {per_head:.0f} %)"
    return text, HOLDS if 67.5 <= share < 69 else CANNOT


def speed_bound(name: str, other: str, **knobs: object) -> float:
    """Cache numbers of `other` over those of `name`: what a decode bound by cache traffic alone could gain."""
    return accounting.kv_numbers(model(other, **knobs)) / accounting.kv_numbers(model(name))


def speed_32() -> tuple[str, str | None]:
    """3.2 is exactly the ratio of cache bytes."""
    bound, measured = (speed_bound(f"{name}:m", "mha:m") for name in ("mla_rope_paper_b", "mla_rope"))
    most = "the most that decode can gain where nothing else takes time"
    return f"cache bytes fall {bound:.2f} times ({measured:.2f} in the form timed here): {most}", None


def speed_14() -> tuple[str, str | None]:
    """Full to half rank."""
    joint = speed_bound("mla_rope:m", "mla_rope:m", kv_lora_rank=512)
    per_head = speed_bound("mla_per_head:m", "mla_per_head:m", kv_lora_rank=64)
    return f"cache bytes fall {joint:.2f} times (joint) or {per_head:.2f} times (per head): possible", None


def active_42() -> tuple[str, str | None]:
    """62 + 2 micro-experts in the parameters of vanilla size m: how many of them does a token meet?"""
    vanilla = accounting.params(model("mha:m"))
    knobs = {"ffn": "moe", "n_routed_experts": 62, "n_shared_experts": 2, "top_k": 6}

    def moe(width: int) -> dict[str, int]:
        return accounting.params(model("mla_rope:m", **knobs, d_expert=width))

    width = min(range(16, 65), key=lambda w: abs(moe(w)["total"] - vanilla["total"]))
    found = moe(width)
    fewer = 100 * (1 - found["active"] / vanilla["total"])
    body = 100 * (1 - (found["active"] - found["embedding"]) / vanilla["non_embedding"])
    text = (
        f"{vanilla['total'] / 1e6:.1f}M parameters are met with experts of width {width}; then {fewer:.1f} % fewer are "
        f"active ({body:.1f} % without embeddings)"
    )
    return text, None if 40 <= fewer <= 44 or 40 <= body <= 44 else CANNOT


def twice_dense() -> tuple[str, str | None]:
    """Experts of a quarter of the dense feed-forward, 8 of them at work."""
    return "8 active experts of 1/4 are 2.0 times the dense feed-forward, not fewer parameters", CANNOT


def combinations() -> tuple[str, str | None]:
    """Ways to choose 6 of 62."""
    return f"C(62, 6) = {math.comb(62, 6):,} = {math.comb(62, 6):.1e}", CANNOT
