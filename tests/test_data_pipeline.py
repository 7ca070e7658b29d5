"""mla_jax.data.pipeline: each window once an epoch, each eval target once, labels shifted, order by seed."""

import json
import random
from pathlib import Path

import jax
import numpy as np
import pytest

from mla_jax.config import Config, replace
from mla_jax.config_files import load_config
from mla_jax.data.pipeline import baselines, eval_batches, shift, train_iterator, windows
from mla_jax.data.prepare import Prepared
from mla_jax.data.token_file import TokenFile
from mla_jax.data.tokenizer import Tokenizer, train_tokenizer
from mla_jax.errors import UserError

SEP = 1
TOKENIZER = Tokenizer(train_tokenizer(["the quick brown fox jumps over a lazy dog"] * 3, 300))


def token_file(n_tokens: int, seed: int = 0) -> TokenFile:
    """Stories of 1 to 30 random tokens; no two windows are alike."""
    rng = random.Random(seed)
    stream, starts, sizes = [SEP], [0], []
    while len(stream) < n_tokens - 1:
        length = min(rng.randint(1, 30), n_tokens - 1 - len(stream))
        stream += [rng.randrange(2, TOKENIZER.vocab_size) for _ in range(length)] + [SEP]
        starts.append(len(stream) - 1)
        sizes.append(4 * length)
    arrays = np.array(stream, np.uint16), np.array(starts, np.int64), np.array(sizes, np.int64)
    return TokenFile(*arrays, separator_id=SEP)


def prepared(n_tokens: int) -> Prepared:
    return Prepared(TOKENIZER, token_file(n_tokens), token_file(500, seed=1), "0" * 64, {})


def config(**train) -> Config:
    knobs = {"train.batch_size": 6, "train.microbatches": 1, "train.seq_len": 16, "train.seed": 3}
    return load_config("smoke", **(knobs | {f"train.{k}": v for k, v in train.items()}))


def take(iterator, n: int) -> np.ndarray:
    """[n, B, T + 1]"""
    return np.stack([next(iterator)["tokens"] for _ in range(n)])


def rows(tokens: np.ndarray) -> list[bytes]:
    """Windows in order, each as bytes to compare."""
    return [row.astype(np.int32).tobytes() for row in tokens.reshape(-1, tokens.shape[-1])]


@pytest.mark.parametrize("n_tokens", [16, 17, 32, 33, 34, 1000])
def test_windows_share_one_token_and_make_each_a_target_once(n_tokens: int) -> None:
    file = token_file(n_tokens)
    source = windows(file, 16)
    targets = [token for i in range(len(source)) for token in source[i][1:]]
    assert targets == file.tokens[1 : 1 + len(targets)].tolist()
    assert n_tokens - 1 - 16 < len(targets) <= n_tokens - 1
    assert all(source[i].shape == (17,) and source[i][0] == file.tokens[16 * i] for i in range(len(source)))


def test_each_epoch_has_every_window_once_in_an_order_of_its_own() -> None:
    data = prepared(16 * 30 + 1)  # 30 windows: 5 batches of 6
    seen = rows(take(train_iterator(data, config()), 15))
    epochs = [seen[0:30], seen[30:60], seen[60:90]]
    every = sorted(rows(np.stack([windows(data.train, 16)[i] for i in range(30)])))
    assert all(sorted(epoch) == every for epoch in epochs)
    assert len({tuple(epoch) for epoch in [*epochs, every]}) == 4


def test_batches_run_across_the_ends_of_epochs() -> None:
    data = prepared(16 * 10 + 1)  # 10 windows: 30 are 5 batches of 6
    seen = rows(take(train_iterator(data, config()), 5))
    assert all(sorted(seen[i : i + 10]) == sorted(seen[:10]) for i in (0, 10, 20))


def test_fewer_windows_than_a_batch() -> None:
    data = prepared(17)
    tokens = take(train_iterator(data, config()), 3)
    assert tokens.shape == (3, 6, 17) and len(set(rows(tokens))) == 1


def test_order_depends_on_the_seed_and_on_nothing_else() -> None:
    data = prepared(16 * 30 + 1)
    reference = take(train_iterator(data, config()), 12)
    for threads in (1, 5):
        again = take(train_iterator(data, replace(config(), **{"data.threads": threads})), 12)
        assert np.array_equal(reference, again)
    other = take(train_iterator(data, config(seed=4)), 12)
    assert not np.array_equal(reference, other)
    # Epoch 1 of a seed is not epoch 0 of the next one: runs with neighbouring seeds are independent.
    assert not np.array_equal(reference[5:10], other[:5])
    top = config(seed=2**32 - 1)
    assert np.array_equal(take(train_iterator(data, top), 12), take(train_iterator(data, top), 12))


@pytest.mark.parametrize("processes", [2, 3, 6])
def test_processes_share_the_batch_that_one_process_would_have(processes: int) -> None:
    data = prepared(16 * 10 + 1)
    whole = take(train_iterator(data, config()), 7)
    parts = [take(train_iterator(data, config(), i, processes), 7) for i in range(processes)]
    assert all(part.shape == (7, 6 // processes, 17) for part in parts)
    assert np.array_equal(whole, np.concatenate(parts, axis=1))  # block i of the rows is process i's


def test_a_batch_that_does_not_divide_among_processes_is_refused() -> None:
    with pytest.raises(UserError, match=r"^train\.batch_size is 6; .*multiple of the 4 processes"):
        train_iterator(prepared(1000), config(), 0, 4)


def test_a_part_without_a_whole_window_is_refused() -> None:
    with pytest.raises(UserError, match=r"^train\.seq_len is 16; .* only 16 tokens"):
        train_iterator(prepared(16), config())


def test_state_resumes_where_it_was_taken() -> None:
    data = prepared(16 * 10 + 1)
    iterator = train_iterator(data, config())
    take(iterator, 4)
    state = json.loads(json.dumps(iterator.get_state()))
    expected = take(iterator, 6)
    fresh = train_iterator(data, replace(config(), **{"data.threads": 1}))
    fresh.set_state(state)
    assert np.array_equal(take(fresh, 6), expected)


def test_training_batches_count_stories_in_each_window() -> None:
    batch = next(train_iterator(prepared(1000), config()))
    assert batch["tokens"].dtype == batch["segment_ids"].dtype == np.int32
    assert batch["tokens"].shape == batch["segment_ids"].shape == (6, 17)
    for tokens, segments in zip(batch["tokens"], batch["segment_ids"], strict=True):
        story, expected = 1, []
        for i, token in enumerate(tokens):
            story += int(i > 0 and token == SEP)
            expected.append(story)
        assert segments.tolist() == expected
    assert (batch["segment_ids"] > 1).any()


@pytest.mark.parametrize("n_tokens", [3, 16, 17, 18, 33, 96, 97, 98, 500])
def test_evaluation_has_every_target_once_in_constant_shapes(n_tokens: int) -> None:
    file, targets = token_file(n_tokens), []
    for batch in eval_batches(file, 16, 3):
        assert batch["tokens"].shape == batch["segment_ids"].shape == (3, 17)
        assert batch["tokens"].dtype == batch["segment_ids"].dtype == np.int32
        padding = batch["segment_ids"] == 0
        assert (batch["tokens"][padding] == SEP).all()
        shifted = jax.tree.map(np.asarray, shift(batch, document_mask=False))
        real = shifted["loss_mask"] > 0
        assert (shifted["segment_ids"][real] > 0).all()
        targets += shifted["targets"][real].tolist()
    assert targets == file.tokens[1:].tolist()


#                 sep  a  b sep  c  d  .  .
TOKENS = np.array([[1, 5, 6, 1, 7, 8, 1, 1], [9, 9, 1, 1, 5, 6, 7, 8]])
SEGMENTS = np.array([[1, 1, 1, 2, 2, 2, 0, 0], [1, 1, 2, 3, 3, 3, 3, 3]])


@pytest.mark.parametrize("transform", [lambda f: f, lambda f: jax.jit(f, static_argnums=1)])
def test_shift_by_hand(transform) -> None:
    batch = {"tokens": TOKENS.astype(np.int32), "segment_ids": SEGMENTS.astype(np.int32)}
    masked, plain = (transform(shift)(batch, document_mask) for document_mask in (True, False))
    for out in (masked, plain):
        assert out["inputs"].tolist() == [[1, 5, 6, 1, 7, 8, 1], [9, 9, 1, 1, 5, 6, 7]]
        assert out["targets"].tolist() == [[5, 6, 1, 7, 8, 1, 1], [9, 1, 1, 5, 6, 7, 8]]
        assert out["loss_mask"].tolist() == [[1, 1, 1, 1, 1, 0, 0], [1] * 7]
        assert out["loss_mask"].dtype == np.float32
        assert {out[k].dtype for k in ("inputs", "targets", "segment_ids", "positions")} == {np.dtype("int32")}
    assert masked["segment_ids"].tolist() == [[1, 1, 1, 2, 2, 2, 0], [1, 1, 2, 3, 3, 3, 3]]
    assert masked["positions"].tolist() == [[0, 1, 2, 0, 1, 2, 0], [0, 1, 0, 0, 1, 2, 3]]
    assert plain["segment_ids"].tolist() == [[1, 1, 1, 1, 1, 1, 0], [1] * 7]
    assert plain["positions"].tolist() == [[0, 1, 2, 3, 4, 5, 6]] * 2


def test_baselines_by_hand() -> None:
    def part(*tokens: int) -> TokenFile:
        return TokenFile(np.array(tokens, np.uint16), np.array([0]), np.array([], np.int64), SEP)

    data = Prepared(TOKENIZER, part(1, 5, 5, 7, 1), part(1, 5, 9, 1), "", {})
    result, vocab = baselines(data), TOKENIZER.vocab_size
    probabilities = [3 / (4 + vocab), 1 / (4 + vocab), 2 / (4 + vocab)]  # of the targets 5, 9 and 1
    assert result["uniform"] == pytest.approx(np.log(vocab))
    assert result["unigram"] == pytest.approx(-np.mean(np.log(probabilities)))


def test_baselines_count_in_pieces(monkeypatch) -> None:
    whole = baselines(prepared(3000))
    monkeypatch.setattr("mla_jax.data.pipeline._CHUNK", 7)
    assert baselines(prepared(3000)) == pytest.approx(whole)


def test_batches_of_real_files_feed_the_step(tmp_path: Path) -> None:
    """From a memory map on disk to a jitted function, the way training does it."""
    from mla_jax.data.prepare import prepare

    knobs = {"data.cache_dir": str(tmp_path), "data.stories": 60, "data.valid_stories": 9}
    real = replace(config(), **knobs)
    data = prepare(real, quiet=True)
    batch = next(train_iterator(data, real))
    stream = data.train.tokens.tolist()
    window = batch["tokens"][0].tolist()
    assert any(stream[i : i + 17] == window for i in range(0, len(stream), 16))
    out = jax.jit(shift, static_argnums=1)(batch, True)
    assert out["inputs"].shape == (6, 16) and out["loss_mask"].sum() == 96
    n_targets = sum(int(shift(b, False)["loss_mask"].sum()) for b in eval_batches(data.valid, 16, 6))
    assert n_targets == len(data.valid.tokens) - 1
    assert 0 < baselines(data)["unigram"] < baselines(data)["uniform"]
