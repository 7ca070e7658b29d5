"""mla_jax.data.tokenizer: lossless for any text, deterministic; unfit models give a sentence."""

import io
import random
from pathlib import Path

import pytest
import sentencepiece as spm
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mla_jax.config import Config
from mla_jax.config_files import load_config
from mla_jax.data.prepare import prepare
from mla_jax.data.tokenizer import Tokenizer, train_tokenizer
from mla_jax.errors import UserError

SENTENCE = "once upon a time there was little red fox who found the old key in garden and smiled"
WORDS = SENTENCE.split()
GOOD = dict(
    model_type="bpe",
    vocab_size=400,
    hard_vocab_limit=False,
    byte_fallback=True,
    normalization_rule_name="identity",
    add_dummy_prefix=False,
    remove_extra_whitespaces=False,
    eos_id=1,
    bos_id=-1,
    minloglevel=2,
)


def make_stories(n: int, seed: int = 0) -> list[str]:
    rng = random.Random(seed)
    return [" ".join(rng.choices(WORDS, k=rng.randint(5, 40))).capitalize() + f".\n{i}" for i in range(n)]


def sentencepiece_model(**changes) -> bytes:
    model = io.BytesIO()
    spm.SentencePieceTrainer.train(sentence_iterator=iter(make_stories(50)), model_writer=model, **(GOOD | changes))
    return model.getvalue()


TOKENIZER = Tokenizer(train_tokenizer(make_stories(200), 400))
# What sentencepiece, JSON, terminals or editors treat specially, more often than chance has it.
NASTY = st.sampled_from(
    ["\u2581", "\0", "<|endoftext|>", "\r", "\n", "\t", "  ", "\ufeff", "<0x41>", "<unk>", "e\u0301"]
)
TEXTS = st.lists(st.one_of(NASTY, st.text(max_size=8), st.sampled_from(WORDS)), max_size=12).map("".join)


@settings(max_examples=400, deadline=None)
@given(TEXTS)
@example("\u2581")
@example(" \u2581 \u2581\u2581")
@example("\0")
@example("<|endoftext|>")
@example("\r")
@example("\t \t   x   ")
@example("\U0010ffff\ud7ff\ue000")
def test_any_text_comes_back_exactly(text: str) -> None:
    ids = TOKENIZER.encode(text)
    assert TOKENIZER.decode(ids) == text
    assert TOKENIZER.separator_id not in ids
    assert all(0 <= i < TOKENIZER.vocab_size for i in ids)


@settings(max_examples=50, deadline=None)
@given(st.lists(TEXTS, max_size=6))
def test_a_batch_is_its_texts_one_by_one(texts: list[str]) -> None:
    assert TOKENIZER.encode_batch(texts) == [TOKENIZER.encode(text) for text in texts]
    assert TOKENIZER.encode_batch(texts, threads=1) == TOKENIZER.encode_batch(texts, threads=2)


def test_separator_is_one_control_piece_that_decodes_to_nothing() -> None:
    ids = [TOKENIZER.separator_id, *TOKENIZER.encode("A key"), TOKENIZER.separator_id]
    assert TOKENIZER.decode(ids) == "A key"
    assert len(TOKENIZER.encode("<|endoftext|>")) > 1


def test_bytes_that_form_no_character_decode_to_a_replacement() -> None:
    first_byte_of_two = TOKENIZER.encode("\u00e9")[0]
    assert TOKENIZER.decode([first_byte_of_two]) == "\ufffd"


@pytest.mark.parametrize("ids", [[-1], [TOKENIZER.vocab_size]])
def test_ids_outside_the_vocabulary_are_refused(ids: list[int]) -> None:
    with pytest.raises(IndexError, match="outside the tokenizer's vocabulary"):
        TOKENIZER.decode(ids)


def test_half_a_surrogate_pair_is_refused() -> None:
    with pytest.raises(UserError, match="Character 1 of a text"):
        TOKENIZER.encode_batch(["fine", "a\ud800"])
    with pytest.raises(UserError, match="Character 1 of a text"):
        train_tokenizer(["fine", "a\ud800"], 300)


def test_training_is_deterministic_and_the_size_a_ceiling() -> None:
    stories = make_stories(200)
    assert train_tokenizer(iter(stories), 400) == TOKENIZER.model
    assert train_tokenizer(stories[:-20], 400) != TOKENIZER.model
    small, large = (Tokenizer(train_tokenizer(stories, size)) for size in (320, 100_000))
    assert small.vocab_size == 320
    assert 320 < large.vocab_size < 1_000  # 17 words carry no more


def test_learned_pieces_shorten_text() -> None:
    text = " ".join(WORDS)
    assert len(TOKENIZER.encode(text)) < len(text) / 2


def test_long_stories_are_learned_from() -> None:
    long_story = "zyzzyva quokka " * 3_000  # ten times the length that sentencepiece skips by default
    tokenizer = Tokenizer(train_tokenizer([*make_stories(3), long_story], 400))
    assert len(tokenizer.encode("zyzzyva quokka ")) <= 3


def test_newlines_are_pieces_of_their_own() -> None:
    ids = TOKENIZER.encode("a key\n\nin a garden")
    newline = TOKENIZER.encode("\n")
    assert len(newline) == 1 and ids.count(newline[0]) == 2


def test_a_vocabulary_too_small_for_the_characters_is_refused() -> None:
    with pytest.raises(UserError, match=r"tokenizer\.vocab_size is 300; .* need 516: .* at least that\.$"):
        train_tokenizer(["".join(map(chr, range(0x4E00, 0x4F00)))], 300)


def test_no_text_is_refused() -> None:
    with pytest.raises(UserError, match="no text to learn a tokenizer from"):
        train_tokenizer([" ", "\n"], 300)


def test_an_error_of_the_stories_is_not_swallowed() -> None:
    def stories():
        yield "a story"
        raise UserError("line 2 is not JSON")

    with pytest.raises(UserError, match="line 2 is not JSON"):
        train_tokenizer(stories(), 300)


def test_load_reads_what_was_written_and_foreign_models_that_fit(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.model"
    path.write_bytes(TOKENIZER.model)
    assert Tokenizer.load(path).sha256 == TOKENIZER.sha256
    path.write_bytes(sentencepiece_model())  # eos is </s>, newline is a byte
    foreign = Tokenizer.load(str(path))
    assert foreign.decode(foreign.encode(" A\n\nkey\u2581 ")) == " A\n\nkey\u2581 "


def bad_tokenizers() -> dict[str, tuple[bytes | None, str]]:
    """name -> (content of the file, or None for none; what the message says)."""
    good = TOKENIZER.model
    return {
        "missing": (None, "does not exist"),
        "empty": (b"", "is not a sentencepiece model"),
        "text": (b"once upon a time\n", "is not a sentencepiece model"),
        "zeros": (b"\0" * 1000, "is not a sentencepiece model"),
        "cut short": (good[: len(good) // 2], "is not a sentencepiece model"),
        "last bytes lost": (good[:-20], "is not a sentencepiece model"),
        "no byte fallback": (sentencepiece_model(byte_fallback=False), "no byte fallback"),
        "no separator": (sentencepiece_model(eos_id=-1), "no control piece"),
        "nfkc": (sentencepiece_model(normalization_rule_name="nmt_nfkc"), "changes text"),
        "case folding": (sentencepiece_model(normalization_rule_name="nfkc_cf"), "changes text"),
        "dummy prefix": (sentencepiece_model(add_dummy_prefix=True), "changes text"),
        "extra spaces": (sentencepiece_model(remove_extra_whitespaces=True), "changes text"),
    }


@pytest.fixture
def config(tmp_path: Path) -> Config:
    (tmp_path / "stories.txt").write_text("\n<|endoftext|>\n".join(make_stories(200)))
    knobs = {"data.path": str(tmp_path / "stories.txt"), "data.cache_dir": str(tmp_path / "cache")}
    return load_config("smoke", **knobs, **{"tokenizer.path": str(tmp_path / "given.model")})


@pytest.mark.parametrize("name", bad_tokenizers())
def test_bad_tokenizers_give_one_sentence_and_write_nothing(name: str, config: Config, tmp_path: Path) -> None:
    content, says = bad_tokenizers()[name]
    if content is not None:
        (tmp_path / "given.model").write_bytes(content)
    with pytest.raises(UserError, match=says) as error:
        prepare(config, quiet=True)
    assert "given.model" in str(error.value) and "\n" not in str(error.value) and str(error.value).endswith(".")
    assert not (tmp_path / "cache").exists()


def test_a_directory_is_no_tokenizer(config: Config, tmp_path: Path) -> None:
    (tmp_path / "given.model").mkdir()
    with pytest.raises(UserError, match="is a directory"):
        prepare(config, quiet=True)


def test_a_script_without_spaces_still_encodes_one() -> None:
    """The space is a piece even where the corpus has none: a prompt may."""
    tokenizer = Tokenizer(train_tokenizer(["日本語の話。猫がいました。" * 20, "犬もいました。" * 20], 300))
    for text in ("猫 犬", " ", "日本語の話。"):
        assert tokenizer.decode(tokenizer.encode(text)) == text
