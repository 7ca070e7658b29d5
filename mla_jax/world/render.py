"""From a plan (events with their cast) to text, with the character span of every fact stated."""

from . import events, lexicon
from .dice import Dice
from .grammar import ARTICLE, CHOICE, FREE, LITERAL, SUBJECT, THERE, Skeleton, skeletons


class Renderer:
    """Writes one story. Carried between sentences: the subject, the length, the skeletons used."""

    def __init__(self, dice: Dice):
        self.dice = dice
        self.pieces: list[str] = []
        self.length = 0
        self.subject = None
        self.pronouns_in_a_row = 0
        self.used: set[str] = set()
        self.facts: dict[tuple[str, str, str], list[list[int]]] = {}
        self.sentences: list[tuple[str, int]] = []

    def event(self, kind: str, roles: dict) -> None:
        """Append one sentence that tells event `kind` of the entities in `roles`."""
        skeleton = self._choose(kind)
        start = self.length
        if self.length:
            self._append(" ")
            start += 1
        first = len(self.pieces)
        self._fill(skeleton, roles)
        self._capitalise(first)
        self.sentences.append((kind, start))
        if skeleton.subject:
            self.subject = roles[skeleton.subject]

    def text(self) -> str:
        return "".join(self.pieces)

    def _choose(self, kind: str) -> Skeleton:
        """A random skeleton of the kind, one not used in this story as long as there is one."""
        options = skeletons()[kind]
        start = self.dice.below(len(options))
        for shift in range(len(options)):
            skeleton = options[(start + shift) % len(options)]
            if skeleton.source not in self.used:
                break
        self.used.add(skeleton.source)
        return skeleton

    def _append(self, piece: str) -> None:
        self.pieces.append(piece)
        self.length += len(piece)

    def _fill(self, skeleton: Skeleton, roles: dict) -> None:
        pick = self.dice.pick
        article_at = -1
        for part in skeleton.parts:
            kind = part.type
            if kind == LITERAL:
                piece = part.text
            elif kind in (CHOICE, FREE):
                piece = pick(part.options)
            elif kind == ARTICLE:
                article_at = len(self.pieces)
                self._append("a")
                continue
            elif kind == THERE:
                place = roles[part.role]
                self._append(f"{place.preposition} the ")
                self._note(skeleton.event, part.role, "noun", place.noun, roles)
                piece = place.noun
            elif kind == SUBJECT:
                piece = self._subject(skeleton.event, part.role, roles)
            else:
                piece = roles[part.role].value(part.attribute)
                if article_at >= 0:
                    self._settle_article(article_at, piece)
                    article_at = -1
                self._note(skeleton.event, part.role, part.attribute, piece, roles)
            if article_at >= 0 and piece.strip():
                self._settle_article(article_at, piece.lstrip())
                article_at = -1
            self._append(piece)

    def _settle_article(self, index: int, word: str) -> None:
        if lexicon.article(word) == "an":
            self.pieces[index] = "an"
            self.length += 1

    def _subject(self, event: str, role: str, roles: dict) -> str:
        character = roles[role]
        if character is self.subject and self.pronouns_in_a_row < 3 and self.dice.chance(65):
            self.pronouns_in_a_row += 1
            self._note(event, role, "he", character.pronoun, roles)
            return character.pronoun
        self.pronouns_in_a_row = 0
        self._note(event, role, "name", character.name, roles)
        return character.name

    def _note(self, event: str, role: str, attribute: str, shown: str, roles: dict) -> None:
        """Record what this slot states: its own attribute, and the relation of the event that it fills."""
        span = [self.length, self.length + len(shown)]
        entity = roles[role]
        if attribute in _OWN_FACT:
            key = (entity.id, _OWN_FACT[attribute], entity.value(attribute))
            if attribute in ("he", "him", "his", "himself"):
                key = (entity.id, "pronoun", entity.pronoun)
            self.facts.setdefault(key, []).append(span)
        elif attribute in ("name", "noun"):
            for relation, holder, filler in events.EVENTS[event].stated:
                if filler == role:
                    self.facts.setdefault((roles[holder].id, relation, shown), []).append(span)

    def _capitalise(self, index: int) -> None:
        """Upper-case the sentence's first letter, behind an opening quote too."""
        while not self.pieces[index].strip('" '):
            index += 1
        piece = self.pieces[index]
        at = next(i for i, character in enumerate(piece) if character not in '" ')
        self.pieces[index] = piece[:at] + piece[at].upper() + piece[at + 1 :]


_OWN_FACT = {
    "color": "color",
    "look": "look",
    "giver": "giver",
    "kind": "kind",
    "trait": "trait",
    "he": "pronoun",
    "him": "pronoun",
    "his": "pronoun",
    "himself": "pronoun",
}
