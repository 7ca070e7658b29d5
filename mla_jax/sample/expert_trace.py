"""Which experts each token of a text went to: JSON for programs, a coloured HTML page for eyes.

python -m mla_jax.main --mode sample --workdir runs/x --trace_experts        writes runs/x/experts/trace.{json,html}
"""

import dataclasses
import html
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mla_jax.errors import UserError
from mla_jax.runs import Run, write_text

_WIDTH = 64  # texts are padded to multiples of it, so that few shapes are compiled
TOP_PAIRS = 12  # of each two neighbouring layers, on the page; the JSON has all


@dataclasses.dataclass(frozen=True)
class Trace:
    """One text. tokens: T pieces, the opening separator first; n_prompt: how many of them were given.

    experts, weights: [L_moe, T, K], in descending order of selection score; what the token at t decided on the way to
    predicting t + 1.
    """

    tokens: list[str]
    n_prompt: int
    experts: np.ndarray
    weights: np.ndarray


def check_has_experts(run: Run) -> None:
    """Raise UserError for a model without experts."""
    if not run.config.model.n_moe_layers:
        raise UserError(
            f"--trace_experts is for models with experts, and {run.folder.path} was trained with model.ffn=dense: "
            "leave it out."
        )


def trace(run: Run, texts: Sequence[tuple[str, str]]) -> list[Trace]:
    """The experts of (prompt, completion) pairs, by one forward pass of each; cut at `model.max_len` tokens."""
    check_has_experts(run)
    router = jax.jit(lambda variables, tokens: run.model.apply(variables, tokens)[1].router)
    limit, traces = run.config.model.max_len, []
    for prompt, completion in texts:
        given = [run.tokenizer.separator_id, *run.tokenizer.encode(prompt)]
        ids = [run.tokenizer.separator_id, *run.tokenizer.encode(prompt + completion)][:limit]
        padded = np.full((1, min(-(-len(ids) // _WIDTH) * _WIDTH, limit)), run.tokenizer.separator_id, np.int32)
        padded[0, : len(ids)] = ids  # what comes after a token changes nothing for it: attention is causal
        aux = jax.device_get(router(run.variables, jnp.asarray(padded)))
        pieces = ["⏎ story"] + [run.tokenizer.decode([token]) for token in ids[1:]]
        chosen, weight = (a[:, 0, : len(ids)] for a in (aux.expert_idx, aux.expert_weight))
        traces.append(Trace(pieces, min(len(given), len(ids)), np.asarray(chosen), np.asarray(weight)))
    return traces


def loads(traces: Sequence[Trace], n_experts: int) -> np.ndarray:
    """[L_moe, E] int: how many tokens of the texts went to each expert."""
    chosen = np.concatenate([each.experts for each in traces], axis=1)
    return np.stack([np.bincount(layer.reshape(-1), minlength=n_experts) for layer in chosen])


def coactivation(traces: Sequence[Trace], n_experts: int) -> np.ndarray:
    """[L_moe - 1, E, E] int: tokens that went to expert i of one layer and to expert j of the next."""
    chosen = np.concatenate([each.experts for each in traces], axis=1)
    used = np.zeros((*chosen.shape[:2], n_experts), np.int64)
    np.put_along_axis(used, chosen, 1, axis=2)
    return np.einsum("lti,ltj->lij", used[:-1], used[1:])


def write(run: Run, traces: Sequence[Trace]) -> tuple[Path, Path]:
    """experts/trace.json and experts/trace.html in the run folder. Raises UserError when they cannot be written."""
    folder = run.folder.path / "experts"
    data, page = folder / "trace.json", folder / "trace.html"
    try:
        folder.mkdir(exist_ok=True)
        write_text(data, json.dumps(_content(run, traces), ensure_ascii=False))
        write_text(page, render(run.folder.name, traces, run.config.model.n_routed_experts))
    except OSError as error:
        raise UserError(f"{folder} cannot be written to ({error.strerror}): make room, or copy the run.") from None
    return data, page


def _content(run: Run, traces: Sequence[Trace]) -> dict[str, Any]:
    model = run.config.model
    return {
        "run": run.folder.name,
        "step": run.step,
        "n_routed_experts": model.n_routed_experts,
        "top_k": model.top_k,
        "first_layer": model.first_k_dense,
        "texts": [
            {
                "tokens": each.tokens,
                "n_prompt": each.n_prompt,
                "experts": each.experts.tolist(),
                "weights": np.round(each.weights.astype(np.float64), 4).tolist(),
            }
            for each in traces
        ],
        "load": loads(traces, model.n_routed_experts).tolist(),
        "coactivation": coactivation(traces, model.n_routed_experts).tolist(),
    }


_STYLE = """
body { font: 16px/1.7 Georgia, serif; max-width: 60em; margin: 2em auto; padding: 0 1em; color: #222; }
h1, h2, summary { font-family: sans-serif; } summary { cursor: pointer; font-weight: bold; }
span { border-radius: 3px; padding: 1px 0; white-space: pre-wrap; } .given { text-decoration: underline dotted; }
table { border-collapse: collapse; font: 13px sans-serif; } td, th { padding: 2px 10px; text-align: right; }
p.note { color: #666; font: 13px sans-serif; }
"""


def render(name: str, traces: Sequence[Trace], n_experts: int) -> str:
    """The page: no script, nothing fetched. Each layer shows every text, a token in the colour of its first expert."""
    n_layers = traces[0].experts.shape[0]
    parts = [
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">',
        f"<title>Experts of {html.escape(name)}</title><style>{_STYLE}</style></head><body>",
        f"<h1>Experts of {html.escape(name)}</h1>",
        '<p class="note">A token has the colour of the expert that was chosen first in that layer; rest the pointer on '
        "it for all of them and their weights. What was given is underlined.</p>",
    ]
    pairs = coactivation(traces, n_experts)
    for layer in range(n_layers):
        parts.append(f"<details{' open' if layer in (0, n_layers - 1) else ''}><summary>layer {layer}</summary>")
        parts += [f"<p>{_text(each, layer, n_experts)}</p>" for each in traces]
        if layer + 1 < n_layers:
            parts.append(_pair_table(pairs[layer], loads(traces, n_experts)[layer : layer + 2], layer, traces))
        parts.append("</details>")
    return "\n".join([*parts, "</body></html>\n"])


def _text(each: Trace, layer: int, n_experts: int) -> str:
    spans = []
    for t, token in enumerate(each.tokens):
        chosen, weight = each.experts[layer, t], each.weights[layer, t]
        title = ", ".join(f"{e} ({w:.2f})" for e, w in zip(chosen, weight, strict=True))
        kind = ' class="given"' if t < each.n_prompt else ""
        colour = f"hsl({int(360 * chosen[0] / n_experts)} 75% {82 if chosen[0] % 2 else 74}%)"
        spans.append(f'<span{kind} style="background:{colour}" title="{title}">{html.escape(token)}</span>')
    return "".join(spans)


def _pair_table(pairs: np.ndarray, load: np.ndarray, layer: int, traces: Sequence[Trace]) -> str:
    """The pairs that occur most beyond what independent choices would give."""
    n_tokens = sum(len(each.tokens) for each in traces)
    expected = np.outer(load[0], load[1]) / n_tokens
    order = np.argsort(-(pairs - expected).reshape(-1))[:TOP_PAIRS]
    rows = "".join(
        f"<tr><td>{i}</td><td>{j}</td><td>{pairs[i, j]}</td><td>{expected[i, j]:.1f}</td></tr>"
        for i, j in zip(*np.unravel_index(order, pairs.shape), strict=True)
    )
    head = f"<tr><th>layer {layer}</th><th>layer {layer + 1}</th><th>tokens</th><th>if independent</th></tr>"
    return f"<table>{head}{rows}</table>"
