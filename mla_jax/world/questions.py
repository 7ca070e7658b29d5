"""Fact questions: the words of a story that only its earlier facts can tell.

A probe is a story cut right before such a word, with the right continuation and wrong ones of the same kind.
Its distance is counted in words from the last place where the text stated the same fact.
"""

import math
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from . import lexicon
from .dice import Dice, mix_text

# A fact's relation or attribute -> the kind of question that it makes.
KIND_OF_FACT = {
    "color": "color",
    "owner": "owner",
    "home": "place",
    "place": "place",
    "party": "place",
    "live": "place",
    "far": "place",
    "pronoun": "pronoun",
    "giver": "giver",
    "meet": "place",
    "likes": "food",
    "fed": "food",
    "from": "source",
}
KINDS = ("color", "owner", "place", "pronoun", "giver", "food", "source")
# Events whose sentences ask whose something is (elsewhere the owner's name is often just the speaker's).
_OWNER_EVENTS = frozenset(
    ("owners", "owns_old", "owns_new", "whose", "friend_end", "give_back", "return_lent", "trade")
)
BUCKETS = ((0, 20), (20, 50), (50, 100), (100, 10**6))
FAR_WORDS = 50
FAR = f">={FAR_WORDS}"  # the bucket, beside those, of facts that were stated long ago
MAX_CANDIDATES = 8


@dataclass(frozen=True, slots=True)
class Probe:
    """One question. `candidates[0]` is the right continuation of `prefix`; each starts with its own space."""

    story: str
    kind: str
    prefix: str
    candidates: tuple[str, ...]
    distance: int

    @property
    def answer(self) -> str:
        return self.candidates[0]


LogProbFn = Callable[[Sequence[Probe]], Iterable[Sequence[float]]]


def probes(rows: Iterable[dict], min_distance: int = 0) -> Iterator[Probe]:
    """The fact questions of story rows (`world.stories`), `min_distance` words or more from the last cue."""
    for row in rows:
        for kind, fact, before, span in _uses(row):
            probe = _probe(row, kind, fact, before, span)
            if probe and probe.distance >= min_distance:
                yield probe


def cut_context(probe: Probe, words: int) -> Probe:
    """The same question with only the last `words` words of its prefix."""
    return replace(probe, prefix=" ".join(probe.prefix.split(" ")[-words:]))


def score(questions: Sequence[Probe], logprob_fn: LogProbFn) -> list[dict]:
    """Rows of accuracy and probability per kind and distance bucket, and over all kinds (kind "all").

    `logprob_fn(questions)` yields for each question the log-probabilities (nats) of its candidates as
    continuations of its prefix, in order. ValueError if their number differs. `accuracy`: the right one is
    the most probable candidate. `probability`: the mean probability of the right one; `share`: the same among
    the candidates; `chance`: a blind guess.
    """
    table: dict[tuple[str, str], list[tuple[float, ...]]] = {}
    for probe, logprobs in zip(questions, logprob_fn(questions), strict=True):
        logprobs = [float(value) for value in logprobs]
        if len(logprobs) != len(probe.candidates):
            raise ValueError(f"{len(logprobs)} log-probabilities for {len(probe.candidates)} candidates")
        right = logprobs[0]
        hit = float(all(right > other for other in logprobs[1:]))
        top = max(logprobs)
        share = math.exp(right - top) / sum(math.exp(value - top) for value in logprobs)
        values = (hit, math.exp(right), share, 1 / len(logprobs))
        for kind in (probe.kind, "all"):
            for bucket in _buckets(probe.distance):
                table.setdefault((kind, bucket), []).append(values)
    order = {kind: index for index, kind in enumerate((*KINDS, "all"))}
    rows = []
    for (kind, bucket), values in sorted(table.items(), key=lambda item: (order[item[0][0]], item[0][1])):
        means = [sum(column) / len(values) for column in zip(*values, strict=True)]
        names = ("accuracy", "probability", "share", "chance")
        rows.append({"kind": kind, "distance": bucket, "n": len(values), **dict(zip(names, means, strict=True))})
    return rows


def _buckets(distance: int) -> list[str]:
    names = [_bucket_name(low, high) for low, high in BUCKETS if low <= distance < high]
    return names + ([FAR] if distance >= FAR_WORDS else [])


def _bucket_name(low: int, high: int) -> str:
    return f"{low:03d}-{high - 1:03d}" if high < 10**6 else f"{low:03d}-"


def _uses(row: dict) -> Iterator[tuple[str, dict, list[int], list[int]]]:
    """(kind of question, fact, the span stated last before, the span asked for)."""
    for fact in row["facts"]["facts"]:
        kind = KIND_OF_FACT.get(fact["kind"])
        if kind is None:
            continue
        spans = [fact["setup"], *fact["uses"]]
        for before, span in zip(spans, spans[1:], strict=False):
            yield kind, fact, before, span


def _probe(row: dict, kind: str, fact: dict, before: list[int], span: list[int]) -> Probe | None:
    text, story = row["text"], row["facts"]
    start, end = span
    events = story["events"]
    event, sentence_start, roles = events[bisect_right([event[1] for event in events], start) - 1]
    told = text[sentence_start:start]
    if kind != "pronoun" and len(told.split()) < 3:
        return None  # at the head of a sentence nothing says yet what is asked for
    entity = story["entities"][fact["entity"]]
    if kind == "owner" and (event not in _OWNER_EVENTS or not _names_thing(entity, told)):
        return None
    if kind == "source" and not (event == "thanks_all" and _last_food(told) == entity["noun"]):
        return None
    if kind == "pronoun" and entity["name"] in lexicon.NAME_PRONOUN:
        return None  # the name alone tells the gender
    answer = text[start:end]
    others = _distractors(kind, answer, story["entities"])
    if told.endswith((" a ", " an ")):
        # "an" must not tell the one color that begins with a vowel.
        others = tuple(word for word in others if lexicon.article(word) == lexicon.article(answer))
    if not others:
        return None
    space = " " if text[start - 1] == " " else ""
    return Probe(
        story=row["id"],
        kind=kind,
        prefix=text[: start - len(space)],
        candidates=tuple(space + word for word in (answer, *others)),
        distance=text.count(" ", before[0], start),
    )


def _names_thing(thing: dict, told: str) -> bool:
    """The sentence has already said which thing it is about."""
    return f" {thing['noun']}" in told or f" {thing['color']} " in told


def _last_food(told: str) -> str:
    """The food named last; "" for none."""
    for word in reversed(told.replace(",", " ").split()):
        if word in _SINGULAR:
            return _SINGULAR[word]
    return ""


_SINGULAR = {lexicon.plural(food): food for food in lexicon.FOODS}
_FORMS = (("she", "he"), ("She", "He"), ("herself", "himself"), ("Her", "His"))


def _distractors(kind: str, answer: str, entities: dict) -> tuple[str, ...]:
    """Wrong words of the answer's kind: all those of the same story first, then others by fingerprint."""
    if kind == "pronoun":
        for pair in _FORMS:
            if answer in pair:
                return (pair[1 - pair.index(answer)],)
        return ("him", "his") if answer == "her" else ("her",)
    pool, own = _pool(kind, answer, entities)
    own = [word for word in dict.fromkeys(own) if word != answer]
    rest = [word for word in pool if word != answer and word not in own]
    room = max(0, MAX_CANDIDATES - 1 - len(own))
    return (*own, *Dice(mix_text(answer + "".join(own))).sample(rest, min(room, len(rest))))


def _pool(kind: str, answer: str, entities: dict) -> tuple[Sequence[str], list[str]]:
    """(every word of the kind, those of this story)."""
    of_type: dict[str, list[dict]] = {"character": [], "thing": [], "place": [], "food": []}
    for entity in entities.values():
        of_type[entity["type"]].append(entity)
    if kind in ("owner", "source"):
        return (), [character["name"] for character in of_type["character"]]
    if kind in ("color", "giver"):
        return (lexicon.COLORS if kind == "color" else lexicon.RELATIVES), [e[kind] for e in of_type["thing"]]
    if kind == "place":
        preposition = lexicon.PLACE_PREPOSITION[answer]
        nouns = [noun for word, noun in lexicon.PLACES if word == preposition]
        return nouns, [e["noun"] for e in of_type["place"] if e["preposition"] == preposition]
    foods = [lexicon.plural(e["noun"]) for e in of_type["food"]]
    return [lexicon.plural(food) for food in lexicon.FOODS], foods
