"""Tokens to text while they are being drawn: whole characters only, cut before a stop string."""

import bisect
from collections.abc import Sequence

from mla_jax.data.tokenizer import Tokenizer

_UNDECIDED = "\ufffd"  # what bytes that form no character (yet) decode to


def settled(tokenizer: Tokenizer, tokens: Sequence[int]) -> str:
    """The text of a beginning of a story that no further token can change.

    A character may be spelled by several byte tokens; until the last of them is there its bytes decode to U+FFFD.
    """
    return tokenizer.decode(tokens).rstrip(_UNDECIDED)


def stopped_at(tokenizer: Tokenizer, tokens: Sequence[int], stop: Sequence[str]) -> tuple[int, str] | None:
    """Where a story ends that must not contain any of `stop`: None if it contains none of them.

    Otherwise (n, text): the n-th token is the one that completes a stop string, the first to do so, and the text is
    that of the first n tokens, cut before it. Where a stop string lies across the borders of tokens, it is found.
    """

    def text(n: int) -> str:
        return settled(tokenizer, tokens[:n])

    def contains(n: int) -> bool:
        return any(string in text(n) for string in stop)

    if not stop or not contains(len(tokens)):
        return None
    n = bisect.bisect_left(range(len(tokens)), True, key=contains)  # texts only grow
    return n, text(n)[: min(at for string in stop if (at := text(n).find(string)) >= 0)]


class TextStream:
    """Text pieces of one story, token by token: `push` each token, then `finish`.

    Joined, the pieces are the story's text, cut before the first stop string; `stopped` says that there was one.
    """

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] = ()):
        self._tokenizer, self._stop = tokenizer, tuple(stop)
        self._tokens: list[int] = []
        self._given = 0  # characters handed out
        self.stopped = False

    def push(self, token: int) -> str:
        """The text that this token settles: '' while a character or a possible stop string is incomplete."""
        self._tokens.append(token)
        end = stopped_at(self._tokenizer, self._tokens, self._stop)
        if end is not None:
            self.stopped = True
            return self._give(end[1])
        text = settled(self._tokenizer, self._tokens)
        held = max((_overlap(text, string) for string in self._stop), default=0)
        return self._give(text[: len(text) - held])

    def finish(self) -> str:
        """What is left when no more tokens come."""
        return "" if self.stopped else self._give(self._tokenizer.decode(self._tokens))

    def _give(self, text: str) -> str:
        piece = text[self._given :]
        self._given += len(piece)
        return piece


def _overlap(text: str, string: str) -> int:
    """The length of the longest end of `text` that a stop string begins with."""
    return next((n for n in range(min(len(string) - 1, len(text)), 0, -1) if text.endswith(string[:n])), 0)
