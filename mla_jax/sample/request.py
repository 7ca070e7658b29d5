"""What is asked of the sampler, checked before anything is traced and rounded to shapes that few programs serve."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from mla_jax import accounting
from mla_jax.config import ModelConfig
from mla_jax.data.tokenizer import Tokenizer
from mla_jax.errors import UserError
from mla_jax.sample.methods import Method

CACHE_DTYPES = ("auto", "bfloat16", "float32", "int8")
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
    model: ModelConfig,
    prompts: Sequence[str],
    method: Method,
    max_new_tokens: int,
    seed: int | Sequence[int],
    stop: Sequence[str],
    cache_dtype: str,
    prefill_chunk: int,
) -> Request:
    """Raises UserError, before anything is traced, for whatever cannot be sampled. `prompts` is not empty."""
    if isinstance(prompts, str) or not all(isinstance(prompt, str) for prompt in prompts):
        raise UserError(f"prompts is {repr(prompts)[:60]}; it must be a list of strings: e.g. ['Once upon a time'].")
    if max_new_tokens < 1:
        raise UserError(f"max_new_tokens is {max_new_tokens}; it must be at least 1: e.g. 256.")
    if isinstance(stop, str) or not all(isinstance(string, str) and string for string in stop):
        raise UserError(f"stop is {stop!r}; it must be a list of strings that are not empty: e.g. ['\\n'].")
    if cache_dtype not in CACHE_DTYPES:
        raise UserError(f"cache_dtype is {cache_dtype!r}; it must be one of {' | '.join(CACHE_DTYPES)}: use auto.")
    accounting.check_cache_dtype(model, cache_dtype)
    seeds = _seeds(seed, len(prompts))
    ids = [[tokenizer.separator_id, *each] for each in tokenizer.encode_batch(list(prompts))]
    longest = max(map(len, ids))
    if longest + max_new_tokens > model.max_len:
        raise UserError(
            f"the longest prompt has {longest} tokens (with the separator) and max_new_tokens is {max_new_tokens}; "
            f"together they must not exceed model.max_len ({model.max_len}): shorten one of them."
        )
    rows, batch = len(ids), bucket(len(ids), 1)
    cache_length = min(bucket(longest + max_new_tokens, _SMALLEST), model.max_len)
    pieces = _pieces(longest, cache_length, prefill_chunk)
    tokens = np.full((batch, pieces[-1][1]), tokenizer.separator_id, np.int32)
    for row, each in enumerate(ids):
        tokens[row, : len(each)] = each
    lengths, limit = np.ones(batch, np.int32), np.zeros(batch, np.int32)
    lengths[:rows], limit[:rows] = [len(each) for each in ids], max_new_tokens
    all_seeds = np.zeros(batch, np.uint32)
    all_seeds[:rows] = seeds
    return Request(
        rows=rows,
        tokens=tokens,
        lengths=lengths,
        seeds=all_seeds,
        limit=limit,
        cache_length=cache_length,
        columns=bucket(max_new_tokens, _SMALLEST),
        pieces=pieces,
        method=method,
        stop=tuple(stop),
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


def _seeds(seed: int | Sequence[int], rows: int) -> np.ndarray:
    """uint32 [rows]: the given ones, or seed, seed + 1, ... of which 2^32 - 1 is followed by 0."""
    one = isinstance(seed, (int, np.integer))
    given = [int(seed)] if one else [int(each) for each in seed]
    if not one and len(given) != rows:
        raise UserError(f"seed has {len(given)} numbers for {rows} prompts: give one each, or a single number.")
    for each in given:
        if not 0 <= each < 2**32:
            raise UserError(f"seed is {each}; it must be between 0 and {2**32 - 1}: e.g. 0.")
    return np.asarray(given, np.uint32) + (np.arange(rows, dtype=np.uint32) if one else np.uint32(0))
