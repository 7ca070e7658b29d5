"""Word n-gram models: a baseline that sees only the last few words, and entropies for n = 1..5."""

from collections.abc import Iterable, Sequence

import numpy as np

from .questions import Probe
from .sentences import tokenize

_BITS = 12  # bits a word: five words fit one 64-bit key, exactly
MAX_WORDS = 1 << _BITS
MAX_ORDER = 5
_START, _UNKNOWN = 0, 1


class NGram:
    """Interpolated Witten-Bell models (Witten and Bell, 1991) of all orders up to `order`, in one object.

    P_k(w | h) = (c(h w) + t(h) P_{k-1}(w | h')) / (c(h) + t(h)), t(h) the different words seen behind h;
    P_0 is uniform over the vocabulary and one unknown word. Text is cut by `sentences.tokenize`.
    """

    def __init__(self, order: int = MAX_ORDER):
        if not 1 <= order <= MAX_ORDER:
            raise ValueError(f"order {order} must be 1 to {MAX_ORDER}")
        self.order = order
        self.words: dict[str, int] = {}
        self._grams: list[tuple[np.ndarray, np.ndarray]] = []
        self._contexts: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []

    def fit(self, texts: Iterable[str]) -> "NGram":
        """Count the n-grams of `texts`; ValueError above 4,094 different words."""
        chunks = []
        for text in texts:
            ids = [self.words.setdefault(token, len(self.words) + 2) for token in tokenize(text)]
            chunks.append(np.array([_START] * (self.order - 1) + ids, dtype=np.uint16))
        if len(self.words) + 2 > MAX_WORDS:
            raise ValueError(f"{len(self.words)} different words, but a key holds at most {MAX_WORDS - 2}")
        stream = np.concatenate(chunks) if chunks else np.zeros(0, np.uint16)
        for k in range(1, self.order + 1):
            keys, counts = np.unique(self._keys(stream, k), return_counts=True)
            self._grams.append((keys, counts.astype(np.float64)))
            heads, first = np.unique(keys >> _BITS, return_index=True)
            totals = np.add.reduceat(counts, first).astype(np.float64) if len(keys) else np.zeros(0)
            kinds = np.diff(np.append(first, len(keys))).astype(np.float64)
            self._contexts.append((heads, totals, kinds))
        return self

    def _keys(self, stream: np.ndarray, k: int) -> np.ndarray:
        """The packed k-grams that end in a word, not in padding. [number of words] int64"""
        ends = np.flatnonzero(stream != _START)
        keys = np.zeros(len(ends), np.int64)
        for back in range(k - 1, -1, -1):
            keys = (keys << _BITS) | stream[ends - back]
        return keys

    def _ids(self, text: str) -> list[int]:
        return [self.words.get(token, _UNKNOWN) for token in tokenize(text)]

    def log_probs(self, keys: np.ndarray, order: int) -> np.ndarray:
        """Natural log-probabilities of the last word of each packed `order`-gram. [N] int64 -> [N] float64"""
        prob = np.full(len(keys), 1.0 / (len(self.words) + 1))
        for k in range(1, order + 1):
            part = keys & ((1 << (_BITS * k)) - 1)
            grams, counts = self._grams[k - 1]
            heads, totals, kinds = self._contexts[k - 1]
            count = _lookup(grams, counts, part)
            total, kind = _lookup(heads, totals, part >> _BITS), _lookup(heads, kinds, part >> _BITS)
            prob = np.where(total > 0, (count + kind * prob) / np.maximum(total + kind, 1.0), prob)
        return np.log(prob)

    def entropy(self, texts: Sequence[str], order: int) -> dict[str, float]:
        """Cross-entropy on `texts`: bits a word (signs count as words) and bits a byte."""
        stream = np.concatenate(
            [np.array([_START] * (self.order - 1) + self._ids(text), dtype=np.uint16) for text in texts]
        )
        logs = self.log_probs(self._keys(stream, order), order)
        bits = -float(logs.sum()) / np.log(2.0)
        size = sum(len(text.encode()) for text in texts)
        return {"bits_per_word": float(bits / len(logs)), "bits_per_byte": float(bits / size)}

    def answer(self, questions: Sequence[Probe]) -> list[list[float]]:
        """A `questions.LogProbFn`: the candidates' log-probabilities behind the prefix's last words."""
        keys, sizes = [], []
        for probe in questions:
            # The last 200 characters hold more than the four words that count.
            short = probe.prefix[-200:]
            context = ([_START] * self.order + self._ids(short))[-(self.order - 1) :] if self.order > 1 else []
            head = 0
            for word in context:
                head = (head << _BITS) | word
            keys += [(head << _BITS) | self._ids(candidate)[0] for candidate in probe.candidates]
            sizes.append(len(probe.candidates))
        logs = self.log_probs(np.array(keys, np.int64), self.order)
        return [part.tolist() for part in np.split(logs, np.cumsum(sizes)[:-1])] if sizes else []


def _lookup(keys: np.ndarray, values: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """values[key] for each wanted key, 0 where there is none; `keys` is sorted."""
    if not len(keys):
        return np.zeros(len(wanted))
    at = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[at] == wanted, values[at], 0.0)
