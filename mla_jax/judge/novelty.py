"""How much of a story is copied from the training set: shared 8-grams and the longest copied span.

The index keeps one 64-bit hash and one 32-bit position for every 8-gram of the corpus, sorted by hash: 12
bytes a word, so that 100,000 stories of 240 words take about 290 MB. An 8-gram that is not in the corpus
meets a hash of it with a probability of about 1e-12, so no text has to be kept.
"""

from array import array
from collections.abc import Iterable

import numpy as np

from ..world.dice import mix_text
from ..world.sentences import tokenize

# Stories whose hashes are joined at a time: many small arrays would leave the heap in pieces.
_BLOCK = 2000
_FACTOR = np.uint64(0x9E3779B97F4A7C15)


class NoveltyIndex:
    """All n-grams of a corpus, by hash."""

    def __init__(self, hashes: np.ndarray, positions: np.ndarray, n: int):
        self._hashes = hashes
        self._positions = positions
        self.n = n
        self._words: dict[str, int] = {}

    @classmethod
    def build(cls, texts: Iterable[str], n: int = 8) -> "NoveltyIndex":
        """Index `texts`; peak memory is about 24 bytes a word."""
        index = cls(np.zeros(0, np.uint64), np.zeros(0, np.uint32), n)
        blocks: list[np.ndarray] = []
        small: list[np.ndarray] = []
        sizes = array("I")
        for text in texts:
            small.append(index._hash(text))
            sizes.append(len(small[-1]))
            if len(small) == _BLOCK:
                blocks.append(np.concatenate(small))
                small = []
        hashes = np.concatenate([*blocks, *small, np.zeros(0, np.uint64)])
        del blocks, small
        # Word w of all stories together sits at w + n * (number of stories before it): the gap keeps spans
        # from running over the end of a story.
        positions = np.arange(len(hashes), dtype=np.uint32)
        positions += np.repeat(np.arange(len(sizes), dtype=np.uint32) * np.uint32(n), sizes)
        order = np.argsort(hashes)
        index._positions = positions[order]
        del order, positions
        hashes.sort()  # again, in place: cheaper than a sorted copy beside the order
        index._hashes = hashes
        return index

    @property
    def nbytes(self) -> int:
        return self._hashes.nbytes + self._positions.nbytes

    def _hash(self, text: str) -> np.ndarray:
        """The rolling hash of every n-gram of a text. [words - n + 1] uint64"""
        words = self._words
        ids = []
        for token in tokenize(text):
            value = words.get(token)
            if value is None:
                value = words[token] = mix_text(token)
            ids.append(value)
        stream = np.array(ids, np.uint64)
        count = len(stream) - self.n + 1
        if count <= 0:
            return np.zeros(0, np.uint64)
        result = np.zeros(count, np.uint64)
        for k in range(self.n):
            result = result * _FACTOR + stream[k : k + count]
        return result

    def compare(self, text: str) -> dict[str, float]:
        """`copied_share` of the text's n-grams in [0, 1], and `longest_copied_span` in words (signs count).

        The span is exact from n words on; shorter copies count as 0.
        """
        hashes = self._hash(text)
        if not len(hashes) or not len(self._hashes):
            return {"copied_share": 0.0, "longest_copied_span": 0.0}
        low = np.searchsorted(self._hashes, hashes, side="left")
        high = np.searchsorted(self._hashes, hashes, side="right")
        longest = 0
        ends, lengths = np.zeros(0, np.uint32), np.zeros(0, np.int64)
        for first, last in zip(low.tolist(), high.tolist(), strict=True):
            # A span of the corpus that ended one word earlier goes on here.
            here = np.sort(self._positions[first:last])
            size = np.full(len(here), self.n, np.int64)
            if len(ends) and len(here):
                at = np.minimum(np.searchsorted(ends, here - np.uint32(1)), len(ends) - 1)
                size = np.where(ends[at] == here - np.uint32(1), lengths[at] + 1, size)
            ends, lengths = here, size
            if len(size):
                longest = max(longest, int(size.max()))
        return {
            "copied_share": float((high > low).mean()),
            "longest_copied_span": float(longest),
        }
