"""Choosing who and what a story is about, and which combinations belong to which split."""

from . import lexicon
from .dice import Dice
from .state import Character, Food, Place, Thing

# Combinations are dealt to the splits like cards: of 11 in a row, one is for valid, one for test.
_PARTS = 11
SPLITS = ("train", "valid", "test")


def _table(firsts: tuple[str, ...], seconds: tuple[str, ...]) -> dict[str, dict[str, tuple[str, ...]]]:
    """split -> first word -> the second words it may be combined with (11 or more: no split gets none)."""
    table: dict[str, dict[str, tuple[str, ...]]] = {split: {} for split in SPLITS}
    for row, first in enumerate(firsts):
        dealt: dict[str, list[str]] = {split: [] for split in SPLITS}
        for column, second in enumerate(seconds):
            part = (row * 7 + column) % _PARTS
            dealt["valid" if part == 0 else "test" if part == 1 else "train"].append(second)
        for split in SPLITS:
            table[split][first] = tuple(dealt[split])
    return table


_COLORS_OF_THING = _table(lexicon.THINGS, lexicon.COLORS)
_HOMES_OF_NAME = _table(lexicon.NAMES, lexicon.HOMES)


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

    def thing(self, main: bool = False, noun: str = "") -> Thing:
        """A thing; the main one has a colour that its split alone combines with its noun."""
        noun = noun or self._fresh(lexicon.THINGS)
        split = self.split if main else "train"
        options = _COLORS_OF_THING[split][noun]
        color = self._fresh(options)
        look = self._fresh(lexicon.LOOKS)
        giver = self._fresh(lexicon.RELATIVES)
        return self._add(Thing(f"o{self._count(Thing)}", noun, color, look, giver))

    def place(self, of: Character | None = None) -> Place:
        """A place; with `of`, one that this split alone combines with the character's name."""
        noun = self._fresh(_HOMES_OF_NAME[self.split][of.name] if of else lexicon.PLACE_NOUNS)
        return self._add(Place(f"p{self._count(Place)}", noun, lexicon.PLACE_PREPOSITION[noun]))

    def food(self) -> Food:
        return self._add(Food(f"f{self._count(Food)}", self._fresh(lexicon.FOODS)))

    def _count(self, kind: type) -> int:
        return sum(isinstance(entity, kind) for entity in self.entities)

    def _add(self, entity):
        self.entities.append(entity)
        return entity
