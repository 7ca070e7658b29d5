"""Which experts each token of a text went to: JSON for programs, a coloured HTML page for eyes.

python -m mla_jax.main --mode sample --workdir runs/x --trace_experts        writes runs/x/experts/trace.{json,html}
"""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mla_jax.errors import UserError
from mla_jax.files import write_text
from mla_jax.runs import Run
from mla_jax.sample import expert_page

_WIDTH = 64  # texts are padded to multiples of it, so that few shapes are compiled


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
        pieces = ["⏎ story"] + [run.tokenizer.piece(token) for token in ids[1:]]
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
        model = run.config.model
        write_text(page, render(run.folder.name, traces, model.n_routed_experts, model.first_k_dense))
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


def render(name: str, traces: Sequence[Trace], n_experts: int, first_layer: int = 0) -> str:
    """The page of `expert_page`; first_layer: the model's layer that is the first with experts."""
    return expert_page.page(name, traces, loads(traces, n_experts), coactivation(traces, n_experts), first_layer)
