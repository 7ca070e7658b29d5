"""Sentence skeletons: the little language they are written in, and its compiled form.

A skeleton is text with slots:

* `{A}` a character as the subject: the name, or the subject pronoun where `A` was the subject before;
* `{A!}` a character's name that later subject pronouns refer to ("..., said Tom.");
* `{A.name}`, `{A.he}`, `{A.him}`, `{A.his}`, `{A.himself}`, `{A.kind}`, `{A.trait}` of a character;
* `{O}`, `{O.color}`, `{O.look}`, `{O.giver}` of a thing; `{P}`, `{P.in}` ("in the garden") of a place;
* `{W}`, `{W.many}` ("plums") of a food;
* `{a}` the article a/an that suits the next word;
* `{happy}`, `{weather}` ... any word of that free class of the lexicon;
* `[then|soon|after that]` one of these wordings (an empty one is allowed).

Roles are one capital letter: A-G characters, O Q R things, P S T U places, W X Y foods.
A skeleton is one sentence as `world.sentences.split` sees it: quotes closed, one full stop.
"""

import re
from dataclasses import dataclass
from functools import cache

from . import lexicon
from .events import EVENTS

CHARACTER_ROLES = "ABCDEFG"
THING_ROLES = "OQR"
PLACE_ROLES = "PSTU"

LITERAL, SLOT, FREE, CHOICE, ARTICLE, SUBJECT, THERE = range(7)


@dataclass(frozen=True, slots=True)
class Part:
    """One piece of a skeleton. `role`/`attribute` for slots, `options` for free classes and choices."""

    type: int
    text: str = ""
    role: str = ""
    attribute: str = ""
    options: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Skeleton:
    """One compiled sentence form of one kind of event."""

    event: str
    source: str
    parts: tuple[Part, ...]
    opens: bool  # an opener ("After a while, ") may precede it
    closes: bool  # a closer (", while the larks sang") may follow it
    subject: str  # the role that later subject pronouns refer to; "" leaves the previous one in force

    def key(self) -> str:
        return f"{self.event}: {self.source}"


_PIECES = re.compile(r"\{([^{}]+)\}|\[([^\[\]]*)\]|([^{}\[\]]+)")
_ROLE = re.compile(r"([A-Z])(?:\.([a-z]+)|(!))?$")


def compile_skeleton(event: str, source: str) -> Skeleton:
    """Compile one skeleton; ValueError (a bug in the phrase tables) when a slot is unknown."""
    parts = []
    subject = ""
    for slot, choice, text in _PIECES.findall(source):
        if slot:
            part = _slot_part(slot, source)
            if (part.type == SUBJECT or slot.endswith("!")) and not subject:
                subject = part.role
            if part.type == SUBJECT and any(p.role and p.role in CHARACTER_ROLES for p in parts):
                # Behind another character's name a pronoun would point to the wrong one.
                part = Part(SLOT, role=part.role, attribute="name")
            parts.append(part)
        elif text:
            parts.append(Part(LITERAL, text=text))
        else:
            if "{" in choice:
                raise ValueError(f"skeleton {source!r}: a choice cannot hold a slot")
            parts.append(Part(CHOICE, options=tuple(choice.split("|"))))
    opens = parts[0].type == SUBJECT
    stage = EVENTS[event].stage if event else ""
    closes = opens and source.endswith(".") and '"' not in source and stage != "opening"
    return Skeleton(event, source, tuple(parts), opens, closes, subject)


@cache
def openers(stage: str) -> tuple[str, ...]:
    """What may open a sentence of this stage."""
    return lexicon.OPENING_OPENERS if stage == "opening" else lexicon.OPENERS


@cache
def closers() -> tuple[tuple[Part, ...], ...]:
    """The compiled closing clauses, each without its full stop."""
    return tuple(compile_skeleton("", source).parts for source in lexicon.CLOSERS)


def _slot_part(slot: str, source: str) -> Part:
    if slot == "a":
        return Part(ARTICLE)
    if slot in lexicon.FREE:
        return Part(FREE, text=slot, options=lexicon.FREE[slot])
    match = _ROLE.match(slot)
    if not match:
        raise ValueError(f"skeleton {source!r}: slot {{{slot}}} is neither a role nor a free class")
    role, attribute, new_subject = match.groups()
    if new_subject:
        attribute = "name"
    if role[0] in CHARACTER_ROLES:
        return Part(SLOT, role=role, attribute=attribute) if attribute else Part(SUBJECT, role=role)
    if role[0] in PLACE_ROLES and attribute == "in":
        return Part(THERE, role=role)
    return Part(SLOT, role=role, attribute=attribute or "noun")


@cache
def skeletons() -> dict[str, tuple[Skeleton, ...]]:
    """Every skeleton of the world by event kind, in a fixed order."""
    from .phrases import PHRASES

    return {event: tuple(compile_skeleton(event, source) for source in sources) for event, sources in PHRASES.items()}
