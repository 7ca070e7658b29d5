"""The parameter ladder as a Markdown table: python -m mla_jax.parameter_table (docs/results/parameters.md)."""

from mla_jax import accounting, markdown
from mla_jax.config_files import load_config

ROWS = 50_000  # the papers' vocabulary
PAPER = {"xs": "17.5M", "s": "", "m": "53.9M", "l": "", "xl": "202.7M"}  # papers.md: the quoted points of the ladder


def table() -> str:
    """Total parameters at 50,000 embedding rows for the papers' block (`block=gpt`) and ours, by size and variant."""
    head = ("size", "paper", "MHA, matrices only", "MHA (learned, gpt)", "MLA+RoPE (gpt)", "MHA+RoPE", "MLA+RoPE")
    rows = []
    for size, quoted in PAPER.items():
        cells = [
            _matrices(size),
            _total(f"mha:{size}", "gpt"),
            _total(f"mla_rope:{size}", "gpt"),
            _total(f"mha_rope:{size}", "default"),
            _total(f"mla_rope:{size}", "default"),
        ]
        rows.append((size, quoted, *(f"{cell / 1e6:.2f}M" for cell in cells)))
    return markdown.table(head, rows)


def _config(name: str, block: str):
    return load_config(name, **{"model.block": block, "model.vocab_size": ROWS, "tokenizer.vocab_size": 8192}).model


def _total(name: str, block: str) -> int:
    return accounting.params(_config(name, block))["total"]


def _matrices(size: str) -> int:
    """What the papers count: matrices and the tied embedding, no biases, gains or position table."""
    cfg = _config(f"mha:{size}", "gpt")
    return cfg.vocab_size * cfg.d_model + cfg.n_layers * (
        accounting.attention_matrices(cfg) + accounting.ffn_matrices(cfg)
    )


if __name__ == "__main__":
    print(table())
