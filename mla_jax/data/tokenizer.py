"""The tokenizer: sentencepiece BPE with byte fallback, lossless for any UTF-8 text.

A separator (a control piece that no text encodes to) stands before, between and after stories.
"""

import hashlib
import io
import os
import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import sentencepiece as spm

from mla_jax.data.readers import MAX_STORY_BYTES, SEPARATOR
from mla_jax.errors import UserError

# Raise it whenever the same stories would give another model: cached tokenizers are keyed by it.
TOKENIZER_VERSION = 2
# sentencepiece writes a space as U+2581, so it reads a U+2581 of the text back as a space.
_SPACE_MARK = "\u2581"
# Every way that a normaliser or a space rule is known to change text; a lossless model returns it as it is.
_PROBE = (
    "  Two  spaces\t\ttab \r\n\n\u2581CRLF \ufb01 \u2460 \u00bd \uff21 e\u0301 \u00c9 "
    + "\u00a0\u3000\u200b\ufeff\0\x7f "
    + "".join(map(chr, range(32, 127)))
    + " \U0001f600 \u65e5\u672c  "
)


def train_tokenizer(stories: Iterable[str], vocab_size: int) -> bytes:
    """Learn at most `vocab_size` pieces from all of `stories` (the caller bounds them); deterministic.

    Returns the sentencepiece model. Raises UserError when `vocab_size` cannot hold bytes and characters.
    """
    # A list: an exception inside sentencepiece's own iteration would come back as its RuntimeError.
    sentences = [story for story in stories if story.strip()]
    if not sentences:
        raise UserError("The training part holds no text to learn a tokenizer from: give it some stories.")
    model = io.BytesIO()
    try:
        spm.SentencePieceTrainer.train(
            sentence_iterator=iter(sentences),
            model_writer=model,
            model_type="bpe",
            vocab_size=vocab_size,
            hard_vocab_limit=False,
            byte_fallback=True,
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            user_defined_symbols=["\n"],
            required_chars=_SPACE_MARK,  # a corpus in a script without spaces must still encode one
            unk_id=0,
            eos_id=1,
            eos_piece=SEPARATOR,
            bos_id=-1,
            pad_id=-1,
            # The default, 4,192 bytes, skips longer stories without a word.
            max_sentence_length=4 * MAX_STORY_BYTES,
            input_sentence_size=0,
            num_threads=2,  # fixed, because the model records it
            minloglevel=2,
        )
    except RuntimeError as error:
        needed = re.search(r"required_chars\. \d+ vs (\d+)", str(error))
        if needed is None:
            _refuse_surrogates(sentences)
            raise
        raise UserError(
            f"tokenizer.vocab_size is {vocab_size}; the characters of this corpus and the 256 bytes alone "
            f"need {needed[1]}: set --config.tokenizer.vocab_size to at least that."
        ) from None
    return model.getvalue()


class Tokenizer:
    """A loaded sentencepiece model. Ids are 0 <= id < vocab_size; `separator_id` opens every story.

    Attributes: vocab_size, separator_id, model (the file's bytes), sha256 (of `model`, hex).
    """

    def __init__(self, model: bytes, where: str = "The tokenizer", chosen: bool = True):
        """Raises UserError, naming `where`, for a model that is damaged, lossy or without a separator.

        chosen: by tokenizer.path, which could be left empty; the tokenizer of weights has no such remedy.
        """
        self._instead = ", or leave tokenizer.path empty to train one" if chosen else ""
        self.model = bytes(model)
        self.sha256 = hashlib.sha256(self.model).hexdigest()
        self._processor = spm.SentencePieceProcessor()
        try:
            if not self.model:
                raise RuntimeError("empty")
            self._processor.LoadFromSerializedProto(self.model)
        except (RuntimeError, ValueError, TypeError):
            raise UserError(
                f"{where} is not a sentencepiece model or is damaged: copy it again{self._instead}."
            ) from None
        self.vocab_size = self._processor.get_piece_size()
        self.separator_id = self._processor.eos_id()
        self._mark_ids = [self._byte_id(byte) for byte in _SPACE_MARK.encode("utf-8")]
        self._check(where)

    @classmethod
    def load(cls, path: str | os.PathLike, chosen: bool = True) -> "Tokenizer":
        """Read a sentencepiece `.model` file. Raises UserError when it is missing, unreadable or unfit.

        chosen: see `__init__`.
        """
        where = f"The tokenizer '{path}'"
        try:
            if Path(path).is_dir():
                raise UserError(f"{where} is a directory: name the .model file in it.")
            model = Path(path).read_bytes()
        except FileNotFoundError:
            remedy = "check tokenizer.path, or leave it empty to train one" if chosen else "check the path"
            raise UserError(f"{where} does not exist: {remedy}.") from None
        except OSError as error:
            raise UserError(f"{where} cannot be read ({error.strerror}): check the file and its permissions.") from None
        return cls(model, where, chosen)

    def encode(self, text: str) -> list[int]:
        """Text -> ids, without separators; `decode` gives exactly `text` back."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: list[str], threads: int = 0) -> list[list[int]]:
        """As `encode`, for many texts on several threads (0 = the CPUs of this process, at most 16)."""
        try:
            ids = self._processor.encode(list(texts), num_threads=threads or cpus())
        except (TypeError, RuntimeError):
            _refuse_surrogates(texts)
            raise
        for index, text in enumerate(texts):
            if _SPACE_MARK in text:
                ids[index] = self._encode_marked(text)
        return ids

    def encode_arrays(self, texts: list[str]) -> list[np.ndarray]:
        """As `encode_batch`, int32 arrays, on the calling thread alone: it holds no lock of Python's while it works."""
        try:
            ids = self._processor.encode(texts, num_threads=1, return_type="numpy")
        except (TypeError, RuntimeError):
            _refuse_surrogates(texts)
            raise
        for index, text in enumerate(texts):
            if _SPACE_MARK in text:
                ids[index] = np.asarray(self._encode_marked(text), np.int32)
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        """Ids -> text. Separators give nothing; bytes that form no UTF-8 character give U+FFFD.

        Raises IndexError for an id outside the vocabulary.
        """
        ids = [int(i) for i in ids]
        for i in ids:
            if not 0 <= i < self.vocab_size:
                raise IndexError(f"id {i} is outside the tokenizer's vocabulary of {self.vocab_size}")
        return self._processor.decode(ids)

    def piece(self, token: int) -> str:
        """One token, to be read alone: its text, or "<0xE2>" for a byte that is no character by itself."""
        text = self.decode([token])
        return self._processor.id_to_piece(int(token)) if text == "\N{REPLACEMENT CHARACTER}" else text

    def _encode_marked(self, text: str) -> list[int]:
        first, *others = self._processor.encode(text.split(_SPACE_MARK))
        return first + [i for part in others for i in (*self._mark_ids, *part)]

    def _byte_id(self, byte: int) -> int:
        return self._processor.piece_to_id(f"<0x{byte:02X}>")

    def _check(self, where: str) -> None:
        retrain = f"train it with byte_fallback and the identity normaliser{self._instead}"
        if self.separator_id < 0 or not self._processor.is_control(self.separator_id):
            raise UserError(
                f"{where} has no control piece for the end of a text (eos), which separates stories: "
                f"train it with an eos_id{self._instead}."
            )
        if not all(self._processor.is_byte(self._byte_id(byte)) for byte in range(256)):
            raise UserError(f"{where} has no byte fallback, so it cannot write every text: {retrain}.")
        if self.decode(self.encode(_PROBE)) != _PROBE:
            raise UserError(f"{where} changes text (its normaliser or its space rules do): {retrain}.")


def _refuse_surrogates(texts: list[str]) -> None:
    for text in texts:
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise UserError(
                f"Character {error.start} of a text is {text[error.start]!r}, half a surrogate pair, which "
                "UTF-8 cannot hold: remove it."
            ) from None


def cpus() -> int:
    """CPUs this process may use, at most 16."""
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    return min(16, len(allowed))
