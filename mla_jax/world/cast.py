"""Choosing who and what a story is about, and which combinations belong to which split."""

from . import lexicon
from .dice import Dice, mix_text
from .state import Character, Place, Thing

# Combinations are dealt to the splits by fingerprint: 9 of 11 parts are for training.
_PARTS = 11
_PART_OF_SPLIT = {"valid": 0, "test": 1}
SPLITS = ("train", "valid", "test")


def _table(firsts: tuple[str, ...], seconds: tuple[str, ...]) -> dict[str, dict[str, tuple[str, ...]]]:
    """split -> first word -> the second words it may be combined with."""
    table: dict[str, dict[str, tuple[str, ...]]] = {split: {} for split in SPLITS}
    for first in firsts:
        parts = {second: mix_text(f"{first} {second}") % _PARTS for second in seconds}
        for split in SPLITS:
            wanted = _PART_OF_SPLIT.get(split)
            allowed = [s for s, p in parts.items() if (p == wanted if wanted is not None else p > 1)]
            table[split][first] = tuple(allowed) or seconds[:1]
    return table


_COLORS_OF_THING = _table(lexicon.THINGS, lexicon.COLORS)
_PLACES_OF_NAME = _table(lexicon.NAMES, lexicon.PLACE_NOUNS)


class Cast:
    """Draws entities for one story; no name, noun or colour is given out twice."""

    def __init__(self, dice: Dice, split: str):
        self.dice = dice
        self.split = split
        self.entities: list = []
        self._taken: set[str] = set()

    def _fresh(self, options) -> str:
        for _ in range(64):
            word = self.dice.pick(options)
            if word not in self._taken:
                break
        self._taken.add(word)
        return word

    def character(self) -> Character:
        dice = self.dice
        if dice.chance(50):
            pronoun = "she" if dice.chance(50) else "he"
            name = self._fresh(lexicon.GIRLS if pronoun == "she" else lexicon.BOYS)
            kind = "girl" if pronoun == "she" else "boy"
        else:
            pronoun = "she" if dice.chance(50) else "he"
            name = self._fresh(lexicon.NEUTRAL)
            kind = self._fresh(lexicon.ANIMALS)
        trait = self._fresh(lexicon.TRAITS)
        return self._add(Character(f"c{self._count(Character)}", name, pronoun, kind, trait))

    def thing(self, main: bool = False) -> Thing:
        """A thing; the main one has a colour that its split alone combines with its noun."""
        noun = self._fresh(lexicon.THINGS)
        split = self.split if main else "train"
        options = _COLORS_OF_THING[split][noun]
        color = self._fresh(options)
        look = self._fresh(lexicon.LOOKS)
        giver = self._fresh(lexicon.RELATIVES)
        return self._add(Thing(f"o{self._count(Thing)}", noun, color, look, giver))

    def place(self, of: Character | None = None) -> Place:
        """A place; with `of`, one that this split alone combines with the character's name."""
        noun = self._fresh(_PLACES_OF_NAME[self.split][of.name] if of else lexicon.PLACE_NOUNS)
        return self._add(Place(f"p{self._count(Place)}", noun, lexicon.PLACE_PREPOSITION[noun]))

    def _count(self, kind: type) -> int:
        return sum(isinstance(entity, kind) for entity in self.entities)

    def _add(self, entity):
        self.entities.append(entity)
        return entity
