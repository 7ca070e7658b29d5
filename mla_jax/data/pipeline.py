"""From token files to batches: windows, their order, label shift and loss mask."""

import math
from collections.abc import Iterator

import grain
import jax
import jax.numpy as jnp
import numpy as np

from mla_jax.config import Config
from mla_jax.data.prepare import Prepared
from mla_jax.data.token_file import TokenFile
from mla_jax.errors import UserError

_CHUNK = 2**22  # tokens counted at a time


class Windows:
    """grain's RandomAccessDataSource: window i is tokens[i T : i T + T + 1], as stored.

    Neighbours share one token, so every token but the first is a target once; a tail shorter than T is
    left out.
    """

    def __init__(self, token_file: TokenFile, seq_len: int):
        # A plain view: slicing a np.memmap costs ten times a slice of an array.
        self._tokens, self._seq_len = np.asarray(token_file.tokens), seq_len

    def __len__(self) -> int:
        return (len(self._tokens) - 1) // self._seq_len

    def __getitem__(self, index: int) -> np.ndarray:
        start = int(index) * self._seq_len
        return self._tokens[start : start + self._seq_len + 1]


def windows(token_file: TokenFile, seq_len: int) -> Windows:
    """The windows of `token_file`, uint16 or uint32 [seq_len + 1] each, for `grain.MapDataset.source`."""
    return Windows(token_file, seq_len)


def train_iterator(
    prepared: Prepared, config: Config, process_index: int = 0, process_count: int = 1
) -> grain.DatasetIterator:
    """Endless batches {"tokens", "segment_ids"}, int32 [B / process_count, T + 1] each.

    Their order depends on train.seed and the epoch only; process i gets block i of the rows of a step's batch, which
    is the same however many processes share it: so a run goes on with another number of them. `get_state` and
    `set_state` give and take a small dict. Raises UserError when the batch does not divide among processes or not one
    window fits.
    """
    train = config.train
    source = windows(prepared.train, train.seq_len)
    if not len(source):
        raise UserError(
            f"train.seq_len is {train.seq_len}; the training part has only {len(prepared.train.tokens):,} "
            "tokens: lower --config.train.seq_len or give more stories."
        )
    if train.batch_size % process_count:
        raise UserError(
            f"train.batch_size is {train.batch_size}; it must be a multiple of the {process_count} "
            "processes: change --config.train.batch_size."
        )
    separator_id = prepared.train.separator_id
    dataset = (
        grain.MapDataset.source(source)
        .seed(train.seed)  # hashed; shuffle(seed) alone would make epoch 1 of seed 0 epoch 0 of seed 1
        .shuffle()
        .repeat()  # before batching: batches run across the ends of epochs
        .batch(train.batch_size // process_count, drop_remainder=True)
        .slice(slice(process_index, None, process_count))
        .map(lambda tokens: _batch(tokens, separator_id))
    )
    options = grain.ReadOptions(num_threads=config.data.threads, prefetch_buffer_size=4 * config.data.threads)
    return iter(dataset.to_iter_dataset(options))


def eval_batches(token_file: TokenFile, seq_len: int, batch_size: int) -> Iterator[dict[str, np.ndarray]]:
    """The whole file once: {"tokens", "segment_ids"}, int32 [batch_size, seq_len + 1].

    Every token but the first is a target exactly once. What is missing in the last window and batch is
    padding: separators with segment id 0.
    """
    tokens, separator_id = token_file.tokens, token_file.separator_id
    n_windows = math.ceil((len(tokens) - 1) / seq_len)
    for first in range(0, n_windows, batch_size):
        block = np.full((batch_size, seq_len + 1), separator_id, np.int32)
        real = np.zeros(block.shape, bool)
        for row in range(min(batch_size, n_windows - first)):
            window = tokens[(first + row) * seq_len :][: seq_len + 1]
            block[row, : len(window)] = window
            real[row, : len(window)] = True
        batch = _batch(block, separator_id)
        yield {"tokens": block, "segment_ids": np.where(real, batch["segment_ids"], 0).astype(np.int32)}


def _batch(tokens: np.ndarray, separator_id: int) -> dict[str, np.ndarray]:
    """Adds segment ids: 1, 2, ... within a window; a separator starts a new one."""
    opens = tokens == separator_id
    opens[:, 0] = True
    return {"tokens": tokens.astype(np.int32), "segment_ids": np.cumsum(opens, axis=1, dtype=np.int32)}


def shift(batch: dict[str, jax.Array], document_mask: bool) -> dict[str, jax.Array]:
    """The one home of label shift and loss mask; pure, for use inside jit.

    batch: {"tokens", "segment_ids"}, int32 [B, T + 1]. Returns inputs, targets, segment_ids, positions, int32
    [B, T], and loss_mask, float32 [B, T], 1 where the target is no padding. With `document_mask` positions
    count from each story's separator and segment_ids tell the stories apart; without, positions count from
    the window's start and segment_ids are 1 for text and 0 for padding.
    """
    tokens, segments = batch["tokens"], batch["segment_ids"]
    inputs, segment_ids = tokens[:, :-1], segments[:, :-1]
    index = jnp.broadcast_to(jnp.arange(inputs.shape[1], dtype=jnp.int32), inputs.shape)
    if document_mask:
        before = jnp.pad(segment_ids[:, :-1], ((0, 0), (1, 0)), constant_values=-1)
        starts = jax.lax.cummax(jnp.where(segment_ids != before, index, 0), axis=1)
        positions = index - starts
    else:
        positions, segment_ids = index, (segment_ids > 0).astype(jnp.int32)
    return {
        "inputs": inputs,
        "targets": tokens[:, 1:],
        "loss_mask": (segments[:, 1:] > 0).astype(jnp.float32),
        "segment_ids": segment_ids,
        "positions": positions,
    }


def baselines(prepared: Prepared) -> dict[str, float]:
    """Losses on the validation part, in nats per token, that need no model.

    uniform: log(vocab_size). unigram: cross-entropy under the token frequencies of the training part, each
    count raised by one.
    """
    vocab_size = prepared.tokenizer.vocab_size
    train, valid = (_counts(part, vocab_size) for part in (prepared.train, prepared.valid))
    log_p = np.log((train + 1) / (train.sum() + vocab_size))
    return {"uniform": math.log(vocab_size), "unigram": float(-(valid * log_p).sum() / valid.sum())}


def _counts(part: TokenFile, vocab_size: int) -> np.ndarray:
    """How often each token is a target: float64 [vocab_size]."""
    counts = np.zeros(vocab_size)
    for start in range(1, len(part.tokens), _CHUNK):
        counts += np.bincount(part.tokens[start : start + _CHUNK], minlength=vocab_size)
    return counts
