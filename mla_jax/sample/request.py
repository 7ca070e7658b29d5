"""What is asked of the sampler, checked before anything is traced and rounded to shapes that few programs serve."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from mla_jax import accounting
from mla_jax.config import Config
from mla_jax.data.tokenizer import Tokenizer
from mla_jax.errors import UserError
from mla_jax.sample import settings
from mla_jax.sample.methods import Method

_SMALLEST = 64  # of prompt widths, cache lengths and new tokens: shorter ones share its programs


@dataclasses.dataclass(frozen=True)
class Request:
    """A checked request; B' rows after rounding, of which the first `rows` are asked for.

    tokens [B', W] int32 right-padded; lengths [B'] int32, separator included; seeds [B'] uint32; limit [B'] int32,
    new tokens (0 in rows that only fill the batch); cache_length S; columns M of the output; pieces: the borders
    (start, end) of the parts in which prompts are read, the first of them by `prefill`.
    """

    rows: int
    tokens: np.ndarray
    lengths: np.ndarray
    seeds: np.ndarray
    limit: np.ndarray
    cache_length: int
    columns: int
    pieces: tuple[tuple[int, int], ...]
    method: Method
    stop: tuple[str, ...]
    cache_dtype: str


def build(
    tokenizer: Tokenizer,
    config: Config,
    prompts: Sequence[str],
    method: Method,
    max_new_tokens: int | None,
    seed: int | Sequence[int],
    stop: Sequence[str],
    cache_dtype: str,
) -> Request:
    """Raises UserError, before anything is traced, for whatever cannot be sampled.

    max_new_tokens: None = `sample.max_new_tokens`, or fewer in a row that has no room for so many.
    """
    model, default = config.model, max_new_tokens is None
    prompts, stop = settings.texts("prompts", prompts), settings.texts("stop", stop)
    new = config.sample.max_new_tokens if default else settings.number("max_new_tokens", max_new_tokens)
    accounting.check_cache_dtype(model, settings.choice("cache_dtype", cache_dtype))
    numbers = settings.seeds(seed, len(prompts))
    ids = [[tokenizer.separator_id, *each] for each in tokenizer.encode_batch(list(prompts))]
    longest = max(map(len, ids))
    if longest + (1 if default else new) > model.max_len:
        raise UserError(
            f"the longest prompt has {longest} tokens (with the separator) and max_new_tokens is "
            f"{'at least 1' if default else new}; together they must not exceed model.max_len ({model.max_len}): "
            f"shorten {'the prompt' if default else 'one of them'}."
        )
    rows, batch = len(ids), bucket(len(ids), 1)
    limits = [min(new, model.max_len - len(each)) for each in ids]  # of a row alone: its mates change nothing of it
    needed = max(len(each) + limit for each, limit in zip(ids, limits, strict=True))
    cache_length = min(bucket(needed, _SMALLEST), model.max_len)
    pieces = _pieces(longest, cache_length, config.sample.prefill_chunk)
    tokens = np.full((batch, pieces[-1][1]), tokenizer.separator_id, np.int32)
    for row, each in enumerate(ids):
        tokens[row, : len(each)] = each
    lengths, limit = np.ones(batch, np.int32), np.zeros(batch, np.int32)
    lengths[:rows], limit[:rows] = [len(each) for each in ids], limits
    all_seeds = np.zeros(batch, np.uint32)
    all_seeds[:rows] = numbers
    return Request(
        rows=rows,
        tokens=tokens,
        lengths=lengths,
        seeds=all_seeds,
        limit=limit,
        cache_length=cache_length,
        columns=bucket(max(limits), _SMALLEST),
        pieces=pieces,
        method=method,
        stop=stop,
        cache_dtype=cache_dtype,
    )


def bucket(n: int, smallest: int) -> int:
    """The least of smallest x {1, 1.5, 2, 3, 4, 6, 8, ...} that holds n: at most half of it is in vain."""
    size = smallest
    while size < n:
        between = size + size // 2
        if n <= between:
            return between
        size *= 2
    return size


def _pieces(longest: int, cache_length: int, chunk: int) -> tuple[tuple[int, int], ...]:
    """Borders of the parts in which prompts are read: one part where they fit into `chunk` tokens."""
    if longest <= chunk:
        return ((0, min(bucket(longest, _SMALLEST), cache_length)),)
    return tuple((start, min(start + chunk, cache_length)) for start in range(0, longest, chunk))
