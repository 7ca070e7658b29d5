"""Five ways to spoil a story by a known amount, to calibrate a checker: its score has to follow."""

from collections.abc import Callable

from ..world import lexicon
from ..world.dice import Dice
from ..world.sentences import split, tokenize

STRENGTHS = (0.1, 0.25, 0.5, 0.75)

_NAMES = frozenset(lexicon.NAMES)
# Words of one kind may stand for each other without spoiling the grammar of the sentence.
_GROUPS = (
    lexicon.COLORS,
    lexicon.ANIMALS,
    lexicon.RELATIVES,
    tuple(lexicon.plural(food) for food in lexicon.FOODS),
    *(
        tuple(noun for word, noun in lexicon.PLACES if word == preposition)
        for preposition in sorted({word for word, _ in lexicon.PLACES})
    ),
)
_GROUP_OF = {word: group for group in _GROUPS for word in group}


def word_shuffle(text: str, strength: float, dice: Dice) -> str:
    """The words of a share `strength` of the sentences in random order, the last one in its place."""
    sentences = _sentences(text)
    for index in _some(len(sentences), strength, dice):
        words = sentences[index].split(" ")
        sentences[index] = " ".join([*dice.sample(words[:-1], len(words) - 1), words[-1]])
    return " ".join(sentences)


def sentence_shuffle(text: str, strength: float, dice: Dice) -> str:
    """A share `strength` of the sentences change places among themselves."""
    sentences = _sentences(text)
    chosen = sorted(_some(len(sentences), strength, dice))
    moved = dice.sample(chosen, len(chosen))
    result = list(sentences)
    for target, source in zip(chosen, moved, strict=True):
        result[target] = sentences[source]
    return " ".join(result)


def name_swap(text: str, strength: float, dice: Dice) -> str:
    """A share `strength` of the names become another name, of this story or of another."""
    words = text.split(" ")
    places = [index for index, word in enumerate(words) if _bare(word) in _NAMES]
    cast = sorted({_bare(words[index]) for index in places})
    for place in _some(len(places), strength, dice):
        index = places[place]
        others = [name for name in (cast if dice.chance(50) else lexicon.NAMES) if name != _bare(words[index])]
        if others:
            words[index] = words[index].replace(_bare(words[index]), dice.pick(others))
    return " ".join(words)


def attribute_flip(text: str, strength: float, dice: Dice) -> str:
    """A share `strength` of colors, places, kinds, foods and relatives become another of their kind."""
    words = text.split(" ")
    places = [index for index, word in enumerate(words) if _bare(word) in _GROUP_OF]
    for place in _some(len(places), strength, dice):
        word = _bare(words[places[place]])
        others = [other for other in _GROUP_OF[word] if other != word]
        words[places[place]] = words[places[place]].replace(word, dice.pick(others))
    return " ".join(words)


def truncate(text: str, strength: float, dice: Dice) -> str:
    """The last share `strength` of the words is gone."""
    words = text.split(" ")
    return " ".join(words[: max(1, round(len(words) * (1 - strength)))])


CORRUPTIONS: dict[str, Callable[[str, float, Dice], str]] = {
    "word shuffle": word_shuffle,
    "sentence shuffle": sentence_shuffle,
    "name swap": name_swap,
    "attribute flip": attribute_flip,
    "truncation": truncate,
}


def _bare(word: str) -> str:
    return word.strip('".,!?')


def _some(count: int, strength: float, dice: Dice) -> list[int]:
    """A share `strength` of `count` indices, the fraction left over by chance."""
    exact = count * strength
    whole = int(exact)
    return dice.sample(range(count), min(count, whole + dice.chance(round(100 * (exact - whole)))))


def _sentences(text: str) -> list[str]:
    """The sentences as written: runs of the text's own space-separated words."""
    words = text.split(" ")
    sentences, start = [], 0
    for sentence in split(tokenize(text)):
        size, end = 0, start
        while end < len(words) and size < len(sentence):
            size += len(tokenize(words[end]))
            end += 1
        sentences.append(" ".join(words[start:end]))
        start = end
    return [sentence for sentence in sentences if sentence]
