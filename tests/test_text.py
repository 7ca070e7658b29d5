"""mla_jax.sample.text: streams of whole characters, cut before the first stop string, however tokens fall."""

import functools

import hypothesis
import hypothesis.strategies as st
from run_tools import story_texts

from mla_jax.data.tokenizer import Tokenizer, train_tokenizer
from mla_jax.sample.text import TextStream, settled, stopped_at

STORY = "Fox caf\u00e9 \u65e5\u672c \U0001f600 found\tan old key.\nfound an old"


@functools.cache
def tokenizer() -> Tokenizer:
    return Tokenizer(train_tokenizer(story_texts(200), 320))


def stream(tokens: list[int], stop: tuple[str, ...] = ()) -> tuple[list[str], bool]:
    """The pieces, and whether the stream stopped."""
    text, pieces = TextStream(tokenizer(), stop), []
    for token in tokens:
        pieces.append(text.push(token))
        if text.stopped:
            break
    return [*pieces, text.finish()], text.stopped


def test_characters_of_several_tokens_come_whole() -> None:
    tokens = tokenizer().encode(STORY)
    pieces, stopped = stream(tokens)
    assert "".join(pieces) == STORY and not stopped and "\ufffd" not in "".join(pieces)
    assert len([piece for piece in pieces if piece]) > 10  # it does come in pieces


def test_bytes_that_form_no_character_come_once_they_cannot() -> None:
    tokens = [tokenizer().encode("\u65e5")[0], *tokenizer().encode("fox")]
    assert settled(tokenizer(), tokens[:1]) == ""
    assert "".join(stream(tokens)[0]) == tokenizer().decode(tokens) == "\ufffdfox"
    assert stream(tokens[:1])[0] == ["", "\ufffd"]


def test_the_first_stop_string_to_be_complete_ends_the_story() -> None:
    """Also where another one began before it, and where one is a part of another."""
    tokens = tokenizer().encode("abcdefgh")
    for stop, wanted in (
        (("bcdefgh", "de"), "abc"),
        (("h", "abcdefgh"), ""),
        (("cd", "c"), "ab"),
        (("zzz", "efg"), "abcd"),
    ):
        pieces, stopped = stream(tokens, stop)
        assert stopped and "".join(pieces) == wanted == stopped_at(tokenizer(), tokens, stop)[1]
    assert stopped_at(tokenizer(), tokens, ("hi",)) is None and "".join(stream(tokens, ("hi",))[0]) == "abcdefgh"


def test_as_much_is_held_back_as_may_be_a_stop_string() -> None:
    """The longest end of the text that begins one: of 'aab', after 'a', 'aa' and 'aaa', never less than 'aa'."""
    a, b = (tokenizer().encode(letter)[-1] for letter in "ab")
    assert tokenizer().decode([a, a, b]) == "aab"
    assert stream([a, a, b], ("aab",)) == (["", "", "", ""], True)
    assert stream([a, a, a, b], ("aab",)) == (["", "", "a", "", ""], True)
    assert stream([a, a], ("aab",)) == (["", "", "aa"], False)
    assert stream([b, a, a, a], ("aab", "b")) == (["", ""], True)


@hypothesis.settings(max_examples=60)
@hypothesis.given(
    tokens=st.lists(st.sampled_from([*range(2, 320, 3), *tokenizer().encode("ab ab\u65e5")]), max_size=12),
    stop=st.lists(st.text("ab fo\u65e5", min_size=1, max_size=3), max_size=3),
)
def test_what_streams_is_what_is_cut_at_the_end(tokens: list[int], stop: list[str]) -> None:
    """Nothing that was handed out is ever taken back."""
    whole, end = tokenizer().decode(tokens), stopped_at(tokenizer(), tokens, stop)
    pieces, stopped = stream(tokens, tuple(stop))
    assert "".join(pieces) == (whole if end is None else end[1]) and stopped == (end is not None)
    if end is not None:
        assert len(pieces) - 1 == end[0] and not any(string in end[1] for string in stop)
