"""Does a story hold together? Parsed by the world's grammar, held against its own facts, without an LLM."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from multiprocessing import get_context

from ..world.parse import parse
from ..world.reading import CONTRADICTIONS, Reading
from ..world.sentences import split, tokenize
from .prose import repetition

WELL_FORMED, UNPARSED, CONTRADICTING = "well_formed", "unparsed", "contradicting"
# The stages that a whole story of the world goes through.
_STORY_STAGES = ("opening", "trouble", "middle", "resolution", "ending")
# Below this many stories a second process costs more than it saves.
_PARALLEL_FROM = 400


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the checker says of one story. Shares are in [0, 1].

    `sentences`: (class, contradictions) for each sentence. `resolved`: share of the goals set that were
    reached. `complete`: the mean of `resolved` and the share of story stages told. `score`: the share of
    well-formed sentences times `complete`.
    """

    sentences: tuple[tuple[str, tuple[str, ...]], ...]
    resolved: float
    complete: float
    repetition: float
    problems: dict[str, int] = field(default_factory=dict)

    def share(self, kind: str) -> float:
        """Share of the sentences of class `kind`; 0 for an empty story."""
        return sum(name == kind for name, _ in self.sentences) / len(self.sentences) if self.sentences else 0.0

    @property
    def score(self) -> float:
        return self.share(WELL_FORMED) * self.complete

    def metrics(self) -> dict[str, float]:
        """One flat row of numbers, ready for a result row."""
        return {
            "score": self.score,
            **{kind: self.share(kind) for kind in (WELL_FORMED, UNPARSED, CONTRADICTING)},
            "resolved": self.resolved,
            "complete": self.complete,
            "repetition": self.repetition,
            "sentences": float(len(self.sentences)),
            **{f"contradicting_{kind}": float(self.problems.get(kind, 0)) for kind in CONTRADICTIONS},
        }


def check(text: str) -> Verdict:
    """Check one story of the world, a model's own imperfect one included."""
    reading = Reading()
    sentences = []
    problems: Counter[str] = Counter()
    tokens = tokenize(text)
    for sentence in split(tokens):
        parses = parse(sentence)
        if not parses:
            reading.skip(sentence)
            sentences.append((UNPARSED, ()))
            continue
        found = tuple(sorted(set(reading.read(parses))))
        problems.update(found)
        sentences.append((CONTRADICTING if found else WELL_FORMED, found))
    resolved = reading.resolved()
    stages = sum(stage in reading.stages for stage in _STORY_STAGES) / len(_STORY_STAGES)
    return Verdict(
        tuple(sentences),
        resolved,
        (resolved + stages) / 2,
        repetition(tokens),
        dict(sorted(problems.items())),
    )


def check_many(texts: Iterable[str], processes: int = 1) -> list[Verdict]:
    """Check stories in order, on `processes` processes where there are enough of them to pay for it."""
    texts = list(texts)
    if processes <= 1 or len(texts) < _PARALLEL_FROM:
        return [check(text) for text in texts]
    size = -(-len(texts) // (processes * 4))
    chunks = [texts[start : start + size] for start in range(0, len(texts), size)]
    with get_context("spawn").Pool(processes) as pool:
        return [verdict for part in pool.map(_check_chunk, chunks) for verdict in part]


def _check_chunk(texts: list[str]) -> list[Verdict]:
    return [check(text) for text in texts]


def summarize(verdicts: list[Verdict]) -> dict[str, float]:
    """The mean of every metric over stories; empty for no stories."""
    rows = [verdict.metrics() for verdict in verdicts]
    return {key: sum(row[key] for row in rows) / len(rows) for key in rows[0]} if rows else {}
