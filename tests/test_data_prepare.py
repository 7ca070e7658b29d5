"""mla_jax.data.prepare and token_file: the stream on disk, lookups by content, bad files give a sentence."""

import gzip
import json
import os
import random
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from mla_jax.config import Config
from mla_jax.config_files import load_config
from mla_jax.data import progress, token_file
from mla_jax.data.prepare import Prepared, prepare, prepare_file
from mla_jax.data.tokenizer import Tokenizer
from mla_jax.errors import UserError

TINYSTORIES = Path(__file__).resolve().parents[2] / "shared" / "data" / "tinystories"
WORDS = [
    "once",
    "upon",
    "a",
    "time",
    "the",
    "little",
    "fox",
    "found",
    "an",
    "old",
    "key",
    "caf\u00e9",
    "\u2581",
]


def make_stories(n: int, seed: int = 0) -> list[str]:
    rng = random.Random(seed)
    return [f"Story {i} " + " ".join(rng.choices(WORDS, k=rng.randint(5, 60))) + ".\nThe end." for i in range(n)]


STORIES = make_stories(300)


@pytest.fixture
def config(tmp_path: Path) -> Config:
    (tmp_path / "s.txt").write_text("\n<|endoftext|>\n".join(STORIES))
    return make_config(tmp_path)


def make_config(tmp_path: Path, **knobs) -> Config:
    defaults = {"data.path": str(tmp_path / "s.txt"), "data.cache_dir": str(tmp_path / "cache")}
    return load_config("smoke", **(defaults | {"data.valid_fraction": 0.1} | knobs))


def cache_files(tmp_path: Path) -> set[str]:
    return {str(p.relative_to(tmp_path / "cache")) for p in (tmp_path / "cache").rglob("*") if p.is_file()}


def decoded(prepared: Prepared, split: str) -> list[str]:
    part = getattr(prepared, split)
    bounds = part.story_starts
    return [prepared.tokenizer.decode(part.tokens[a + 1 : b]) for a, b in zip(bounds, bounds[1:], strict=False)]


def same(a: Prepared, b: Prepared) -> bool:
    parts = [(getattr(a, split), getattr(b, split)) for split in ("train", "valid")]
    names = ("tokens", "story_starts", "story_bytes")
    return a.fingerprint == b.fingerprint and all(
        np.array_equal(getattr(x, name), getattr(y, name)) for x, y in parts for name in names
    )


def test_the_stream_holds_every_story_between_separators(config: Config, monkeypatch) -> None:
    monkeypatch.setattr(token_file, "_BATCH_CHARACTERS", 700)  # several batches, so that positions must carry over
    prepared = prepare(config, quiet=True)
    assert sorted(decoded(prepared, "train") + decoded(prepared, "valid")) == sorted(STORIES)
    for split in ("train", "valid"):
        part = getattr(prepared, split)
        separators = np.flatnonzero(part.tokens == prepared.tokenizer.separator_id)
        assert np.array_equal(separators, part.story_starts)
        assert separators[0] == 0 and separators[-1] == len(part.tokens) - 1
        assert part.story_bytes.tolist() == [len(s.encode()) for s in decoded(prepared, split)]
        assert part.n_bytes == sum(part.story_bytes) and part.n_stories == len(separators) - 1
        assert part.tokens.dtype == np.uint16 and part.story_starts.dtype == part.story_bytes.dtype == np.int64
        stats = prepared.stats[split]
        counts = {"stories": part.n_stories, "bytes": part.n_bytes, "tokens": len(part.tokens)}
        assert {name: stats[name] for name in counts} == counts


def test_large_vocabularies_get_four_bytes_a_token(tmp_path: Path) -> None:
    class Large:
        vocab_size, separator_id = 2**16 + 1, 1

        def encode_arrays(self, texts):
            return [np.asarray([2**16], np.int32)] * len(texts)

    meta = token_file.write(tmp_path, [("train", "a"), ("train", "b")], ["train"], Large())
    tokens = token_file.read(tmp_path, "train", meta["train"], separator_id=1).tokens
    assert tokens.dtype == np.uint32 and tokens.tolist() == [1, 2**16, 1, 2**16, 1]


def test_the_tokenizer_sees_the_training_part_only(tmp_path: Path) -> None:
    (tmp_path / "s.txt").write_text("\n<|endoftext|>\n".join(STORIES))
    (tmp_path / "v.txt").write_text("quokka quokka quokka quokka")
    (tmp_path / "w.txt").write_text("a fox")
    a = prepare(make_config(tmp_path, **{"data.valid_path": str(tmp_path / "v.txt")}), quiet=True)
    b = prepare(make_config(tmp_path, **{"data.valid_path": str(tmp_path / "w.txt")}), quiet=True)
    assert a.tokenizer.sha256 == b.tokenizer.sha256
    assert a.fingerprint != b.fingerprint
    assert decoded(a, "valid") == ["quokka quokka quokka quokka"]


def test_train_bytes_caps_what_the_tokenizer_reads(tmp_path: Path, config: Config) -> None:
    rare = [f"zyzzyva {story}" for story in make_stories(200, seed=1)]
    (tmp_path / "s.txt").write_text("\n<|endoftext|>\n".join(STORIES + rare))
    capped = prepare(make_config(tmp_path, **{"tokenizer.train_bytes": 20_000}), quiet=True).tokenizer
    whole = prepare(make_config(tmp_path), quiet=True).tokenizer
    assert len(whole.encode("zyzzyva ")) <= 2 < len(capped.encode("zyzzyva "))


def test_a_second_preparation_only_looks_up(config: Config, tmp_path: Path, monkeypatch) -> None:
    first = prepare(config, quiet=True)
    files = cache_files(tmp_path)
    monkeypatch.setattr("mla_jax.data.readers.Source.stories", lambda *_: pytest.fail("read the corpus again"))
    second = prepare(config, quiet=True)
    assert same(first, second) and cache_files(tmp_path) == files
    assert (first.stats["from_cache"], second.stats["from_cache"]) == (False, True)


def test_a_given_tokenizer_is_used(config: Config, tmp_path: Path) -> None:
    first = prepare(config, quiet=True)
    (tmp_path / "t.model").write_bytes(first.tokenizer.model)
    shutil.rmtree(tmp_path / "cache")
    other = make_config(tmp_path, **{"tokenizer.vocab_size": 300})
    assert same(prepare(other, tokenizer=Tokenizer(first.tokenizer.model), quiet=True), first)
    assert same(prepare(make_config(tmp_path, **{"tokenizer.path": str(tmp_path / "t.model")}), quiet=True), first)
    assert not (tmp_path / "cache" / "tokenizers").exists()


def test_token_files_of_several_tokenizers_stand_side_by_side(config: Config, tmp_path: Path) -> None:
    other = make_config(tmp_path, **{"tokenizer.vocab_size": 350})
    first, second = prepare(config, quiet=True), prepare(other, quiet=True)
    assert first.fingerprint != second.fingerprint and first.tokenizer.sha256 != second.tokenizer.sha256
    assert prepare(config, quiet=True).stats["from_cache"] and prepare(other, quiet=True).stats["from_cache"]
    assert decoded(prepare(config, quiet=True), "valid") == decoded(second, "valid")


def test_changed_content_is_never_read_from_a_stale_cache(config: Config, tmp_path: Path) -> None:
    path, stat = tmp_path / "s.txt", (tmp_path / "s.txt").stat()
    first = prepare(config, quiet=True)
    path.write_bytes(path.read_bytes().replace(b"fox", b"owl"))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # same size, same time
    second = prepare(config, quiet=True)
    assert second.fingerprint != first.fingerprint
    assert any("owl" in s for s in decoded(second, "train"))


def test_the_cache_folder_comes_from_the_environment_when_not_configured(config: Config, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("MLA_JAX_CACHE", str(tmp_path / "elsewhere"))
    prepare(make_config(tmp_path, **{"data.cache_dir": ""}), quiet=True)
    assert (tmp_path / "elsewhere" / "tokens").is_dir() and not (tmp_path / "cache").exists()


def test_progress_is_plain_lines_without_a_terminal(config: Config, monkeypatch) -> None:
    lines = []
    monkeypatch.setattr(progress, "say", lines.append)
    monkeypatch.setattr(progress, "_LINE_SECONDS", 0.0)
    monkeypatch.setattr(token_file, "_BATCH_CHARACTERS", 10_000)
    prepare(config)
    shares = [line for line in lines if line.startswith("Tokenizing: ")]
    assert len(shares) > 2 and shares[-1] == "Tokenizing: 100 % of 300 stories"
    lines.clear()
    prepare(config, quiet=True)
    assert not lines


TEXT = "\n<|endoftext|>\n".join(STORIES).encode()
# name -> (file, its content (None: no such file, "dir": a directory), other knobs, what the message says)
BAD = {
    "missing": ("x.txt", None, {}, "there is no such file"),
    "directory": ("x", "dir", {}, "that is a folder without story files"),
    "empty": ("x.txt", b"", {}, "the file is empty"),
    "separators only": ("x.txt", b"<|endoftext|>\n\n<|endoftext|>\n", {}, "holds no stories"),
    "blanks only": ("x.txt", b" \n\t\n", {}, "holds no stories"),
    "binary": ("x.txt", TEXT[:50] + b"\0" + TEXT, {}, "story 1 holds a NUL byte"),
    "invalid UTF-8": ("x.txt", TEXT + b"\xff", {}, "story 300 is not valid UTF-8"),
    "bad JSON line": ("x.jsonl", b'{"text": "a"}\nb\n', {}, "line 2 is not JSON"),
    "row without text": ("x.jsonl", b'{"tale": "a"}\n', {}, 'line 1 is no object with a "text"'),
    "no gzip": ("x.txt.gz", TEXT, {}, "gzip data is damaged"),
    "gzip cut short": ("x.txt.gz", gzip.compress(TEXT)[:-9], {}, "gzip data is damaged or cut short"),
    "one story": ("x.txt", b"a story", {}, "it holds one story, of which no validation part can be held out"),
    "no validation": ("x.txt", TEXT, {"data.valid_fraction": 1e-6}, "falls into the validation part"),
    "valid missing": ("x.txt", TEXT, {"data.valid_path": "nowhere.txt"}, "data.valid_path is 'nowhere.txt'"),
    "valid empty": ("x.txt", TEXT, {"data.valid_path": os.devnull}, "that is no regular file"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_data_files_give_one_sentence_and_write_nothing(name: str, tmp_path: Path) -> None:
    file, content, knobs, says = BAD[name]
    path = tmp_path / file
    if content == "dir":
        path.mkdir()
    elif content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError) as error:
        prepare(make_config(tmp_path, **{"data.path": str(path)} | knobs), quiet=True)
    message = str(error.value)
    assert says in message and message.startswith("data.") and message.endswith(".") and "\n" not in message
    assert not (tmp_path / "cache").exists()


def test_a_corpus_shorter_than_a_window_is_refused(tmp_path: Path, config: Config) -> None:
    n_tokens = len(prepare(config, quiet=True).train.tokens)
    fits = {"train.seq_len": n_tokens - 1, "model.max_len": n_tokens}
    prepare(make_config(tmp_path, **fits), quiet=True)
    long = {"train.seq_len": n_tokens, "model.max_len": n_tokens}
    says = rf"^train\.seq_len is {n_tokens}; .* one window needs .*: lower --config\.train\.seq_len"
    with pytest.raises(UserError, match=says):
        prepare(make_config(tmp_path, **long), quiet=True)
    shutil.rmtree(tmp_path / "cache")
    with pytest.raises(UserError, match=says):
        prepare(make_config(tmp_path, **long), quiet=True)
    assert not list((tmp_path / "cache" / "tokens").iterdir())


def test_embedded_stories_are_prepared_without_a_file(tmp_path: Path) -> None:
    prepared = prepare(make_config(tmp_path, **{"data.path": ""}), quiet=True)
    assert (prepared.train.n_stories, prepared.valid.n_stories) == (300, 30)
    assert json.dumps(prepared.stats)


@pytest.mark.real_data
@pytest.mark.skipif(not TINYSTORIES.is_dir(), reason="no TinyStories in ../shared/data/tinystories")
def test_real_tinystories(tmp_path: Path) -> None:
    knobs = {"data.path": str(TINYSTORIES / "train.txt"), "data.valid_path": str(TINYSTORIES / "valid.txt")}
    prepared = prepare(make_config(tmp_path, **knobs, **{"tokenizer.vocab_size": 8192}), quiet=True)
    assert (prepared.train.n_stories, prepared.valid.n_stories) == (18_810, 1_445)
    assert prepared.tokenizer.vocab_size == 8192
    texts = (TINYSTORIES / "valid.txt").read_text(encoding="utf-8").split("<|endoftext|>")
    assert decoded(prepared, "valid") == [text.strip("\n") for text in texts if text.strip()]
    assert 3.5 < prepared.train.n_bytes / len(prepared.train.tokens) < 4.5


def test_a_file_to_evaluate_is_tokenized_once_and_may_be_short(config: Config, tmp_path: Path, monkeypatch) -> None:
    tokenizer = prepare(config, quiet=True).tokenizer
    (tmp_path / "one.txt").write_text("A short one.")
    encoded = []
    real = Tokenizer.encode_arrays
    monkeypatch.setattr(Tokenizer, "encode_arrays", lambda self, texts: encoded.extend(texts) or real(self, texts))
    tokens, fingerprint = prepare_file(str(tmp_path / "one.txt"), config, tokenizer)
    assert encoded == ["A short one."] and tokenizer.decode(tokens.tokens[1:-1]) == "A short one."
    again = prepare_file(str(tmp_path / "one.txt"), config, tokenizer)
    assert encoded == ["A short one."] and again[1] == fingerprint and np.array_equal(again[0].tokens, tokens.tokens)


def test_batches_on_many_threads_keep_their_order(config: Config, tmp_path: Path, monkeypatch) -> None:
    whole = prepare(config, quiet=True)
    shutil.rmtree(tmp_path / "cache")
    monkeypatch.setattr(token_file, "cpus", lambda: 5)
    monkeypatch.setattr(token_file, "_BATCH_CHARACTERS", 300)
    real = Tokenizer.encode_arrays

    def slow(self, texts):
        time.sleep(0.02 * random.random())
        return real(self, texts)

    monkeypatch.setattr(Tokenizer, "encode_arrays", slow)
    assert same(prepare(config, quiet=True), whole)


def test_the_cache_holds_few_batches_at_a_time() -> None:
    """A reader that is faster than the encoders waits for them."""
    begun, done = [], []

    def rows():
        for i in range(200):
            begun.append(i)
            assert len(begun) - len(done) <= 2 * 2 + 1
            yield i

    with ThreadPoolExecutor(2) as pool, pytest.MonkeyPatch.context() as patch:
        patch.setattr(token_file, "cpus", lambda: 2)
        for item in token_file._in_order(lambda i: i, rows(), pool):
            done.append(item)
    assert done == list(range(200))
