"""Loss of a model on a whole token file, each token once: what training logs and what `--mode eval` prints."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from mla_jax.data.pipeline import eval_batches
from mla_jax.data.token_file import TokenFile


@dataclasses.dataclass(frozen=True)
class EvalResult:
    """nll: float32 [n_tokens - 1], nats of every token of the file but the first, in order.

    n_bytes counts the stories' UTF-8 bytes: the separators' loss counts, their bytes (they have none) do not.
    """

    nll: np.ndarray
    n_bytes: int
    seq_len: int

    @property
    def loss(self) -> float:
        """Nats per token."""
        return float(self.nll.mean(dtype=np.float64))

    @property
    def perplexity(self) -> float:
        return math.exp(min(self.loss, 700.0))

    @property
    def bits_per_byte(self) -> float:
        return float(self.nll.sum(dtype=np.float64)) / math.log(2) / self.n_bytes

    def by_position(self) -> np.ndarray:
        """Mean nats at each position of the window, float64 [seq_len]: how much a longer context helps. NaN where a
        file shorter than a window has no token."""
        position = np.arange(len(self.nll)) % self.seq_len
        total = np.bincount(position, weights=self.nll, minlength=self.seq_len)
        count = np.bincount(position, minlength=self.seq_len)
        return np.where(count > 0, total / np.maximum(count, 1), np.nan)

    def by_story(self, token_file: TokenFile) -> list[dict[str, Any]]:
        """One row a story: its index, mean loss, tokens (with the separator that closes it) and bytes."""
        starts = np.asarray(token_file.story_starts)
        totals = np.add.reduceat(self.nll.astype(np.float64), starts[:-1])
        return [
            {"story": i, "loss": total / (end - start), "tokens": int(end - start), "bytes": int(size)}
            for i, (total, start, end, size) in enumerate(
                zip(totals, starts[:-1], starts[1:], token_file.story_bytes, strict=True)
            )
        ]


def evaluate(
    eval_step: Callable[[Any, Any], jax.Array],
    variables: Any,
    token_file: TokenFile,
    seq_len: int,
    batch_size: int,
) -> EvalResult:
    """Run `train.step.make_eval_step`'s function over the file. Two batches are in flight at any time."""
    pieces: list[jax.Array | np.ndarray] = []
    for batch in eval_batches(token_file, seq_len, batch_size):
        pieces.append(eval_step(variables, batch))
        if len(pieces) > 2:
            pieces[-3] = np.asarray(pieces[-3])
    nll = np.concatenate([np.asarray(piece).reshape(-1) for piece in pieces])
    return EvalResult(nll[: len(token_file.tokens) - 1], token_file.n_bytes, seq_len)
