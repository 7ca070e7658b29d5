"""Stories of known quality, judged in every run: without them a score says nothing about the judge.

Real held-out stories are the ceiling. Each is also judged with its sentences shuffled, its words shuffled,
its names swapped from half-way on, and cut to almost nothing (the floor); all five keep the same
beginning, so that every comparison is paired.
"""

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from mla_jax.errors import UserError
from mla_jax.judge.sentences import split_sentences

REAL = "control:real"
SENTENCES_SHUFFLED = "control:sentences_shuffled"
WORDS_SHUFFLED = "control:words_shuffled"
NAMES_SWAPPED = "control:names_swapped"
ALMOST_EMPTY = "control:almost_empty"
DAMAGED = (SENTENCES_SHUFFLED, WORDS_SHUFFLED, NAMES_SWAPPED, ALMOST_EMPTY)
PREFIX = "control:"

MIN_SENTENCES = 5
MIN_SWAPS = 2
MIN_STORIES = 8  # below 7 pairs no difference whatsoever can reach p < 0.01
_NAMES = ("Zara", "Hugo", "Olga", "Felix", "Greta", "Boris")
_NOT_NAMES = frozenset(
    ["I", "Mr", "Mrs", "Ms", "Dr", "The", "A", "An", "And", "But", "So", "Then", "One", "Yes", "No"]
    + ["It", "He", "She", "They", "We", "You", "Once", "TV"]
)


def shuffle_sentences(text: str, rng: np.random.Generator) -> str:
    """The same sentences in another order; paragraph breaks stay where they were."""
    parts = split_sentences(text)
    if len({s for s, _ in parts}) < 2:
        raise ValueError("a text of one sentence has no other order")
    while True:
        order = rng.permutation(len(parts))
        if any(parts[i][0] != parts[j][0] for i, j in enumerate(order)):
            return "".join(parts[j][0] + gap for j, (_, gap) in zip(order, parts, strict=True))


def shuffle_words(text: str, rng: np.random.Generator) -> str:
    """The same words in another order, on one line."""
    words = text.split()
    if len(set(words)) < 2:
        raise ValueError("a text of one word has no other order")
    while True:
        shuffled = [words[i] for i in rng.permutation(len(words))]
        if shuffled != words:
            return " ".join(shuffled)


def find_names(text: str) -> list[str]:
    """Names by how they are written: capitalised inside a sentence, at least twice in the text; commonest
    first.
    """
    inside = Counter()
    for sentence, _ in split_sentences(text):
        for match in re.finditer(r"(?<=[a-z,;] )([A-Z][a-z]+)\b", sentence):
            inside[match[1]] += 1
    total = Counter(re.findall(r"\b[A-Z][a-z]+\b", text))
    names = [n for n in inside if total[n] >= 2 and n not in _NOT_NAMES]
    return sorted(names, key=lambda n: (-total[n], n))


def swap_names(prompt: str, text: str) -> str | None:
    """`text` with its names exchanged from its middle sentence on; None when fewer than `MIN_SWAPS` names
    stand there.

    Two names or more change places in a ring; a single one becomes a stranger's.
    """
    parts = split_sentences(text)
    half = len(parts) // 2
    head = "".join(s + gap for s, gap in parts[:half])
    tail = "".join(s + gap for s, gap in parts[half:])
    whole = f"{prompt} {text}"
    names = find_names(whole)[:3]
    if len(names) == 1:
        names.append(next(n for n in _NAMES if n not in whole))
    if not names or len(parts) < 2:
        return None
    other = dict(zip(names, names[1:] + names[:1], strict=True))
    swapped = re.sub(r"\b(" + "|".join(other) + r")\b", lambda m: other[m[1]], tail)
    changed = sum(a != b for a, b in zip(tail.split(), swapped.split(), strict=True))
    return head + swapped if changed >= MIN_SWAPS else None


def story_row(source: str, prompt: str, completion: str, index: int, facts: Any = None) -> dict[str, Any]:
    """A story row (design.md's contract) with two more keys: `prompt`, which `text` begins with, and `index`,
    which tells several stories of one source and prompt apart."""
    text = f"{prompt} {completion.strip()}" if not completion[:1].isspace() else prompt + completion.rstrip()
    digest = hashlib.sha256("\0".join((source, prompt, str(index), text)).encode()).hexdigest()[:16]
    return {"id": digest, "text": text, "facts": facts, "source": source, "prompt": prompt, "index": index}


def build_controls(held_out: Sequence[str], count: int, seed: int) -> list[dict[str, Any]]:
    """Story rows of `count` held-out stories, whole and in the four damaged forms (5 x count rows).

    Fit for it are stories of at least `MIN_SENTENCES` sentences with a name that comes back in their
    second half. Order and choice depend on `seed` only.

    Raises:
      UserError: fewer than `MIN_STORIES` stories are fit, too few to say anything about a judge.
    """
    rng = np.random.default_rng(seed)
    rows: list[dict[str, Any]] = []
    seen: set[str] = set()
    for index in rng.permutation(len(held_out)):
        parts = split_sentences(held_out[index])
        if len({sentence for sentence, _ in parts}) < MIN_SENTENCES or parts[0][0] in seen:
            continue
        prompt = parts[0][0]
        rest = held_out[index].strip()[len(prompt) :].strip()
        swapped = swap_names(prompt, rest)
        if swapped is None:
            continue
        seen.add(prompt)
        forms: dict[str, Callable[[], str]] = {
            REAL: lambda rest=rest: rest,
            SENTENCES_SHUFFLED: lambda rest=rest: shuffle_sentences(rest, rng),
            WORDS_SHUFFLED: lambda rest=rest: shuffle_words(rest, rng),
            NAMES_SWAPPED: lambda swapped=swapped: swapped,
            ALMOST_EMPTY: lambda: "The end.",
        }
        rows += [story_row(source, prompt, make(), 0) for source, make in forms.items()]
        if len(rows) == 5 * count:
            break
    if len(rows) < 5 * MIN_STORIES:
        raise UserError(
            f"only {len(rows) // 5} of {len(held_out)} held-out stories can serve as controls (at least "
            f"{MIN_SENTENCES} sentences and a name that comes back): a judge cannot be tested on fewer than "
            f"{MIN_STORIES}; give a larger validation set."
        )
    return rows
