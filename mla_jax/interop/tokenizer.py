"""Our sentencepiece model as the JSON of a `tokenizers` fast tokenizer, piece for piece.

Written directly rather than through transformers' converters, which put a normaliser in front that turns a space into
U+2581: a text's own U+2581 would then read as a space. Here the pieces hold plain spaces, so nothing is normalised.
"""

from typing import Any

from mla_jax.data.tokenizer import Tokenizer
from mla_jax.errors import UserError

_SPACE_MARK = "\u2581"  # sentencepiece's space
_BPE = 2  # TrainerSpec.ModelType
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _BYTE = 1, 2, 3, 4, 6  # SentencePiece.Type


def tokenizer_json(tokenizer: Tokenizer) -> dict[str, Any]:
    """The content of tokenizer.json: encodes every text (without the separator's name in it) to the same ids.

    sentencepiece merges the adjacent pair whose joined piece has the highest score, the leftmost first; `tokenizers`
    the pair of lowest rank, the leftmost first. So every split of a piece into two pieces is a merge, in the order of
    scores. (Where two overlapping pairs make the same piece, the place should decide and the order of its splits could;
    exhaustive tests over repetitive texts found no such case.)

    Raises UserError for a tokenizer (of tokenizer.path) that this does not cover.
    """
    model = _proto(tokenizer)
    _check(model)
    pieces = [_text(piece) for piece in model.pieces]
    vocab = {piece: i for i, piece in enumerate(pieces)}
    if len(vocab) != len(pieces):
        _refuse("it has a piece twice")
    separator = {"id": tokenizer.separator_id, "content": pieces[tokenizer.separator_id], "special": True}
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [separator | plain],
        "normalizer": None,
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": {"type": "Sequence", "decoders": [{"type": "ByteFallback"}, {"type": "Fuse"}]},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,  # never needed: every byte has a piece. Named, its text would encode to it
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": vocab,
            "merges": _merges(model),
        },
    }


def tokenizer_config(tokenizer: Tokenizer, max_len: int) -> dict[str, Any]:
    """The content of tokenizer_config.json. Nothing is added to a text: a story's opening separator is the caller's."""
    name = _proto(tokenizer).pieces[tokenizer.separator_id].piece
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": name,
        "eos_token": name,
        "pad_token": name,
        "model_max_length": max_len,
        "clean_up_tokenization_spaces": False,
        "add_bos_token": False,
        "add_eos_token": False,
    }


def _proto(tokenizer: Tokenizer) -> Any:
    from sentencepiece import sentencepiece_model_pb2

    model = sentencepiece_model_pb2.ModelProto()
    model.ParseFromString(tokenizer.model)
    return model


def _check(model: Any) -> None:
    if model.trainer_spec.model_type != _BPE:
        _refuse("it is not a BPE model")
    rules = model.normalizer_spec
    if (
        rules.name != "identity"
        or rules.precompiled_charsmap
        or rules.add_dummy_prefix
        or rules.remove_extra_whitespaces
    ):
        _refuse("it normalises text or adds a space before it")
    learned = [p for p in model.pieces if p.type == _NORMAL and len(p.piece) > 1]
    if len({p.score for p in learned}) != len(learned):
        _refuse("two of its pieces have the same score, so the order of merges is not defined")
    symbols = [p.piece for p in model.pieces if p.type == _USER_DEFINED]
    if any(len(symbol) > 1 or any(symbol in p.piece for p in learned) for symbol in symbols):
        _refuse("it has user-defined symbols of more than one character, or within other pieces")
    known = {_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _BYTE}
    if any(p.type not in known for p in model.pieces):
        _refuse("it has pieces that are switched off")


def _refuse(reason: str) -> None:
    raise UserError(
        f"The run's tokenizer cannot be exported: {reason}; transformers would encode text to other ids: "
        "train with a tokenizer of mla_jax (leave tokenizer.path empty)."
    )


def _text(piece: Any) -> str:
    return piece.piece.replace(_SPACE_MARK, " ") if piece.type == _NORMAL else piece.piece


def _merges(model: Any) -> list[list[str]]:
    """[left, right] for every split of every learned piece into two of them, best score first."""
    learned = [(-p.score, _text(p)) for p in model.pieces if p.type == _NORMAL]
    parts = {text for _, text in learned}
    return [
        [text[:i], text[i:]]
        for _, text in sorted(learned)
        for i in range(1, len(text))
        if text[:i] in parts and text[i:] in parts
    ]
