"""README.md of an exported folder: a model card that says nothing the run did not measure."""

import json
from typing import Any

from mla_jax import accounting, markdown, runs
from mla_jax.config import Config
from mla_jax.interop.families import MODEL_TYPES, family
from mla_jax.rows import read_result
from mla_jax.runs import Run

UNKNOWN_DATA = "unknown (imported)"  # fingerprint of a model that was trained elsewhere
_FRONT = """---
library_name: transformers
pipeline_tag: text-generation
tags:
- mla_jax
- {model_type}
---
"""

_USE = """## Use
```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained(".")  # this folder
tokenizer = AutoTokenizer.from_pretrained(".")
text = tokenizer.bos_token + {prompt}  # a story begins with the separator; the next one ends it
ids = tokenizer(text, return_tensors="pt")
print(tokenizer.decode(model.generate(**ids)[0], skip_special_tokens=True))
```
or, with mla_jax, `mla_jax.interop.hf.load(".")`. The tokenizer adds no separator by itself and encodes text to the
ids of the sentencepiece model beside it (`tokenizer.model`), byte for byte reversibly. `mla_jax.json` has the SHA-256
of every file and the whole config.
"""

_LIMITS = """## Limits
A small model trained on one kind of short story. It knows nothing else, invents what it says, and was not trained to
refuse anything.
"""


def text(run: Run, config: Config, data: dict[str, Any], dtype: str) -> str:
    """The Markdown of the card. config: the run's, with the exported vocabulary; data: the run's data.json."""
    name, cfg = run.folder.name, config.model
    architecture = family(cfg)
    opening = (data.get("openings") or ["Once upon a time"])[0]
    parts = [
        _FRONT.format(model_type=MODEL_TYPES[architecture]),
        f"# {name}\n",
        f"A story model of {accounting.params(cfg)['total']:,} parameters trained with mla_jax, as `{architecture}`, "
        f"weights in {dtype}; step {run.step} of the run.\n",
        _table("What it is", _model_rows(cfg)),
        _table("What it learned from", _data_rows(run, data)),
        _table("How well", _loss_rows(run, data)),
        _USE.format(prompt=json.dumps(opening, ensure_ascii=False)),
        _LIMITS,
    ]
    return "\n".join(parts)


def _model_rows(cfg: Any) -> list[tuple[str, str]]:
    kv, mha = accounting.kv_bytes(cfg), accounting.mha_kv_bytes(cfg)
    rows = [
        ("attention", f"{cfg.attention}, {cfg.n_heads} heads of {cfg.head_dim}"),
        ("layers x width", f"{cfg.n_layers} x {cfg.d_model}, feed-forward {cfg.d_ff}"),
        ("positions", f"{cfg.position}, at most {cfg.max_len}"),
        ("vocabulary", f"{cfg.vocab_size:,}"),
    ]
    if cfg.attention == "mla":
        ranks = f"kv_lora_rank {cfg.kv_lora_rank}, q_lora_rank {cfg.q_lora_rank or 'none'}"
        heads = f"nope {cfg.qk_nope_head_dim}, rope {cfg.qk_rope_head_dim}, value {cfg.v_head_dim}"
        rows.append(("latents", f"{ranks}; head widths: {heads}"))
    elif cfg.n_kv_heads != cfg.n_heads:
        rows.append(("key/value heads", str(cfg.n_kv_heads)))
    if cfg.ffn == "moe":
        active = f"{accounting.params(cfg)['active']:,} parameters active for a token"
        experts = f"{cfg.n_routed_experts} routed of width {cfg.d_expert}, {cfg.top_k} of them a token"
        rows.append(("experts", f"{experts}; {cfg.n_shared_experts} shared; {active}"))
    saved = f"MHA of the same heads: {mha:,}; {1 - kv / mha:.1%} saved"
    return [*rows, ("KV cache", f"{kv:,} bytes per token in bfloat16 ({saved})")]


def _data_rows(run: Run, data: dict[str, Any]) -> list[tuple[str, str]]:
    if data["fingerprint"] == UNKNOWN_DATA:
        return [("data", "not known here: the model was imported from a Hugging Face folder")]
    train, stats = run.config.train, data.get("stats") or {}
    rows = [("data", "embedded stories of mla_jax" if not run.config.data.path else "a file of stories")]
    for split in ("train", "valid"):
        part = stats.get(split) or {}
        counts = [f"{part[what]:,} {what}" for what in ("stories", "bytes", "tokens") if type(part.get(what)) is int]
        if counts:
            rows.append((f"{split} part", ", ".join(counts)))
    tokens = run.step * train.batch_size * train.seq_len
    rows += [
        ("data fingerprint", f"`{data['fingerprint'][:16]}`"),
        ("training", f"{run.step:,} steps of {train.batch_size} x {train.seq_len} tokens ({tokens:,} in all)"),
        ("optimizer", f"{run.config.optim.name}, peak learning rate {run.config.optim.learning_rate:g}"),
        ("config hash", f"`{run.config.hash}`"),
    ]
    return rows


def _loss_rows(run: Run, data: dict[str, Any]) -> list[tuple[str, str]]:
    loss = runs.checkpoint_losses(run.folder).get(run.step)
    rows = [("validation loss", "not recorded" if loss is None else f"{loss:.4f} nats per token at this step")]
    for name, value in (data.get("baselines") or {}).items():
        rows.append((f"{name} baseline", f"{value:.4f}"))
    result = read_result(run.folder.result)
    metrics = (result or {}).get("metrics", {})
    if metrics.get("best_step") == run.step and "best_bits_per_byte" in metrics:
        rows.append(("bits per byte", f"{metrics['best_bits_per_byte']:.4f}"))
    if result:
        rows.append(("trained on", str(result.get("device", "unknown"))))
    return rows


def _table(title: str, rows: list[tuple[str, str]]) -> str:
    return f"## {title}\n{markdown.table(('', ''), rows)}\n"
