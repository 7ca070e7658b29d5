"""Heuristics for any English story, real TinyStories included: no grammar, no facts, only the surface."""

import re
from collections import Counter

from ..world.sentences import split, tokenize

_ENDINGS = (".", "!", "?", '"')
_SHE, _HE = frozenset(("she", "her", "hers", "herself")), frozenset(("he", "him", "his", "himself"))


def repetition(tokens: list[str], n: int = 4) -> float:
    """Share of the n-grams that are repeats of an earlier one in the same text; 0 for short texts."""
    total = len(tokens) - n + 1
    if total <= 0:
        return 0.0
    return 1.0 - len({tuple(tokens[i : i + n]) for i in range(total)}) / total


def distinct(tokens: list[str], n: int) -> float:
    """distinct-n (Li et al., 2016): different n-grams over all n-grams; 1 for texts shorter than n."""
    total = len(tokens) - n + 1
    return len({tuple(tokens[i : i + n]) for i in range(total)}) / total if total > 0 else 1.0


def quotes_balanced(text: str) -> bool:
    """Straight quotes come in pairs, and curly ones open before they close."""
    depth = 0
    for sign in re.findall("[“”]", text):
        depth += 1 if sign == "“" else -1
        if depth not in (0, 1):
            return False
    return depth == 0 and text.count('"') % 2 == 0


def ends_well(text: str) -> bool:
    """The last sign is a full stop, an exclamation or question mark, or a closing quote behind one."""
    text = text.rstrip()
    if not text.endswith((*_ENDINGS, "”")):
        return False
    return len(text) > 1 and (text[-1] not in '"”' or text[-2] in ".!?")


def names_of(text: str) -> Counter[str]:
    """Capitalised words that also occur inside sentences: the story's names, with their counts."""
    names: Counter[str] = Counter()
    for sentence in split(tokenize(text)):
        words = [token for token in sentence if token[0].isalpha()]
        for index, word in enumerate(words):
            inside = index > 0 and sentence[sentence.index(word) - 1] != '"'
            if inside and word[0].isupper() and word != "I" and not word.startswith(("I'", "I’")):
                names[word] += 1
    return names


def pronoun_conflict(text: str) -> float:
    """Share of the sentences with one name and one gender of pronoun that go against the majority.

    A heuristic: a name's gender is what most of its own sentences say. 0 where no name has two of them.
    """
    names = names_of(text)
    votes: dict[str, list[str]] = {}
    for sentence in split(tokenize(text)):
        low = {token.lower() for token in sentence}
        genders = [label for label, words in (("she", _SHE), ("he", _HE)) if low & words]
        present = [token for token in set(sentence) if token in names]
        if len(genders) == 1 and len(present) == 1:
            votes.setdefault(present[0], []).append(genders[0])
    counted = [seen for seen in votes.values() if len(seen) > 1]
    total = sum(map(len, counted))
    return sum(len(seen) - max(Counter(seen).values()) for seen in counted) / total if total else 0.0


def check_prose(text: str) -> dict[str, float]:
    """One row of surface measures of one story; every value is in [0, 1] but `words` and `sentences`."""
    tokens = tokenize(text)
    low = [token.lower() for token in tokens]
    sentences = split(tokens)
    seen = Counter(tuple(sentence) for sentence in sentences)
    return {
        "words": float(sum(token[0].isalpha() for token in tokens)),
        "sentences": float(len(sentences)),
        "repetition": repetition(low),
        "repeated_sentences": 1.0 - len(seen) / len(sentences) if sentences else 0.0,
        **{f"distinct_{n}": distinct(low, n) for n in (1, 2, 3)},
        "quotes_balanced": float(quotes_balanced(text)),
        "pronoun_conflict": pronoun_conflict(text),
        "ends_well": float(ends_well(text)),
    }
