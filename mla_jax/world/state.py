"""Who and what a story is about: the entities that the generator casts and the checker rebuilds from text."""

from dataclasses import dataclass

from . import lexicon


@dataclass(slots=True)
class Character:
    """A person or an animal. `pronoun` is the subject form, "she" or "he"."""

    id: str
    name: str
    pronoun: str
    kind: str
    trait: str

    def value(self, attribute: str) -> str:
        """The word that a slot `{A.attribute}` shows."""
        if attribute in _FORMS:
            return lexicon.PRONOUNS[self.pronoun][attribute]
        return getattr(self, attribute)

    def describe(self) -> dict:
        """The JSON form kept in a story's facts."""
        return {
            "type": "character",
            "name": self.name,
            "pronoun": self.pronoun,
            "kind": self.kind,
            "trait": self.trait,
        }


@dataclass(slots=True)
class Thing:
    """An object that can be owned, lost, given and found."""

    id: str
    noun: str
    color: str
    look: str
    giver: str

    def value(self, attribute: str) -> str:
        return getattr(self, attribute)

    def describe(self) -> dict:
        return {
            "type": "thing",
            "noun": self.noun,
            "color": self.color,
            "look": self.look,
            "giver": self.giver,
        }


@dataclass(slots=True)
class Place:
    """Somewhere to be; `preposition` says how one is there ("in", "at", "by", "on", "under")."""

    id: str
    noun: str
    preposition: str

    def value(self, attribute: str) -> str:
        return getattr(self, attribute)

    def describe(self) -> dict:
        return {"type": "place", "noun": self.noun, "preposition": self.preposition}


_FORMS = ("he", "him", "his", "himself")
# The attribute that a bare slot `{X}` shows.
DEFAULT_ATTRIBUTE = {Character: "name", Thing: "noun", Place: "noun"}
