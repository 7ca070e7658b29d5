"""What a reader knows after each sentence of a story, and where a sentence goes against it.

The same rules (`events.EVENTS`) that the renderer turns into facts are applied here to text: a relation said
for the first time is taken down, said again it has to agree.
"""

from dataclasses import dataclass, field

from . import lexicon
from .events import EVENTS, Rule
from .grammar import CHARACTER_ROLES, THING_ROLES
from .parse import Parse

# Kinds of contradiction.
ATTRIBUTE, NAME, PRONOUN, PLACE, OWNERSHIP, ORDER = (
    "attribute",
    "name",
    "pronoun",
    "place",
    "ownership",
    "order",
)
CONTRADICTIONS = (ATTRIBUTE, NAME, PRONOUN, PLACE, OWNERSHIP, ORDER)

_RELATION_KIND = {"owner": OWNERSHIP, "likes": ATTRIBUTE, "from": ATTRIBUTE, "fed": ATTRIBUTE}
_PRONOUN_ATTRIBUTES = ("he", "him", "his", "himself")
_ANY = "*"  # a value that an unparsed sentence may have set


@dataclass(slots=True)
class KnownThing:
    """What the text said of one thing; "" where it has not said it yet."""

    noun: str = ""
    color: str = ""
    look: str = ""
    giver: str = ""


@dataclass(slots=True)
class Step:
    """The result of holding one reading of a sentence against what is known."""

    problems: list[str] = field(default_factory=list)
    relations: dict[tuple[str, object], object] = field(default_factory=dict)
    attributes: list[tuple[object, str, str]] = field(default_factory=list)
    new_characters: list[str] = field(default_factory=list)
    new_things: list[KnownThing] = field(default_factory=list)
    subject: str | None = None
    event: str = ""


class Reading:
    """The state of one story as its text tells it, sentence by sentence."""

    def __init__(self) -> None:
        self.characters: dict[str, dict[str, str]] = {}
        self.things: list[KnownThing] = []
        self.relations: dict[tuple[str, object], object] = {}
        self.goals: dict[str, str] = {}
        self.stages: set[str] = set()
        self.subject: str | None = None
        self.gaps = 0  # unparsed sentences: each may have told one thing that later ones need

    def read(self, parses: tuple[Parse, ...]) -> list[str]:
        """Take in a sentence by its best reading; returns that reading's contradictions, if any."""
        steps = [self._try(parse) for parse in parses]
        step = min(steps, key=lambda step: len(step.problems))
        self._commit(step)
        return step.problems

    def skip(self, raw: list[str]) -> None:
        """Take in an unparsed sentence: its names may be introductions, and it may have told anything."""
        self.gaps += 1
        self.subject = _ANY
        for token in raw:
            if token in _NAMES:
                self.characters.setdefault(token, {})

    def _try(self, parse: Parse) -> Step:
        event = EVENTS[parse.skeleton.event]
        step = Step(event=event.kind)
        shown: dict[str, dict[str, str]] = {}
        for role, attribute, word in parse.bindings:
            known = shown.setdefault(role, {}).get(attribute)
            if known is not None and known != word:
                step.problems.append(PRONOUN if attribute in _PRONOUN_ATTRIBUTES else NAME)
            shown[role][attribute] = word
        new = {rule.role for rule in event.rules if rule.verb == "new"}
        entities = {role: self._resolve(role, words, role in new, step) for role, words in shown.items()}
        things = [entities[role] for role in THING_ROLES if entities.get(role) is not None]
        if len(set(things)) < len(things):  # "not violet but violet": two roles of an event are two things
            step.problems.append(ATTRIBUTE)
        for rule in event.rules:
            self._apply(rule, entities, step)
        subject = entities.get(parse.skeleton.subject)
        step.subject = subject if isinstance(subject, str) else None
        return step

    def _resolve(self, role: str, words: dict[str, str], is_new: bool, step: Step):
        if role in CHARACTER_ROLES:
            return self._character(words, is_new, step)
        if role in THING_ROLES:
            return self._thing(words, is_new, step)
        return words["noun"] if "noun" in words else words.get("many")

    def _character(self, words: dict[str, str], is_new: bool, step: Step) -> str | None:
        subject = words.get("subject")
        name = words.get("name")
        pronouns = {words[attribute] for attribute in _PRONOUN_ATTRIBUTES if attribute in words}
        if subject in ("she", "he"):
            pronouns.add(subject)
            name = name or self.subject
            if name is None:
                step.problems.append(PRONOUN)
        elif subject:
            name = subject
        if name == _ANY:
            return None
        if name is None:
            kinds = [n for n, known in self.characters.items() if known.get("kind") == words.get("kind")]
            name = kinds[0] if kinds and "kind" in words else None
            if name is None:
                return None
        known = self.characters.get(name)
        if is_new:
            step.new_characters.append(name)
            if known is not None and (known or not self.gaps):
                step.problems.append(NAME)
        elif known is None:
            step.problems.append(NAME)
            step.new_characters.append(name)
        known = known or {}
        if len(pronouns) > 1 or any(p != (known.get("pronoun") or _pronoun_of(name) or p) for p in pronouns):
            step.problems.append(PRONOUN)
        elif pronouns:
            step.attributes.append((name, "pronoun", next(iter(pronouns))))
        for attribute in ("kind", "trait"):
            if attribute in words:
                if known.get(attribute, words[attribute]) != words[attribute]:
                    step.problems.append(ATTRIBUTE)
                step.attributes.append((name, attribute, words[attribute]))
        by_kind = _KIND_PRONOUN.get(words.get("kind", ""))
        if by_kind and by_kind != (_pronoun_of(name) or by_kind):
            step.problems.append(PRONOUN)
        return name

    def _thing(self, words: dict[str, str], is_new: bool, step: Step):
        if is_new and not any(thing.noun == words.get("noun") for thing in self.things):
            thing = KnownThing(**{key: words.get(key, "") for key in ("noun", "color", "look", "giver")})
            step.new_things.append(thing)
            return id(thing)
        fits = self.things
        for attribute in ("noun", "color", "giver"):
            if attribute not in words:
                continue
            wanted = words[attribute]
            exact = [thing for thing in fits if getattr(thing, attribute) == wanted]
            if not exact and attribute != "noun":
                exact = [thing for thing in fits if not getattr(thing, attribute)][-1:]
            if not exact:
                if not self.gaps or attribute != "noun":
                    step.problems.append(ATTRIBUTE)
                return id(fits[0]) if fits and fits is not self.things else None
            fits = exact
        thing = fits[0] if fits else None
        if thing is None:
            return None
        for attribute, word in words.items():
            if getattr(thing, attribute) not in ("", word):
                step.problems.append(ATTRIBUTE)
            step.attributes.append((thing, attribute, word))
        return id(thing)

    def _apply(self, rule: Rule, entities: dict, step: Step) -> None:
        verb = rule.verb
        if verb in ("hold", "set"):
            self._relation(rule, entities, step)
        elif verb in ("open", "need", "close", "after"):
            state = step.relations.get(("goal", rule.relation), self.goals.get(rule.relation))
            if verb in ("need", "after"):
                wanted = ("open",) if verb == "need" else ("done",)
                if state not in wanted and not self.gaps:
                    step.problems.append(ORDER)
            else:
                step.relations["goal", rule.relation] = "open" if verb == "open" else "done"
        elif verb == "settled":
            if (not self.goals or "open" in self.goals.values()) and not self.gaps:
                step.problems.append(ORDER)
        elif verb == "feel":
            # Where the sentence does not show who feels, the cause is there for everyone.
            step.relations["mood", entities.get(rule.role) or _ANY] = rule.relation
        elif verb == "felt":
            who = entities.get(rule.role)
            moods = (self.relations.get(("mood", owner)) for owner in (who, _ANY))
            if who and rule.relation not in moods and not self.gaps:
                step.problems.append(ORDER)

    def _relation(self, rule: Rule, entities: dict, step: Step) -> None:
        filler = entities.get(rule.filler)
        if filler is None:
            return
        holder = entities.get(rule.role)
        if holder is None:
            if rule.relation in _RELATION_KIND:
                return
            if rule.verb == "set":
                step.relations[rule.relation, (_ANY, filler)] = filler
                return
            # The sentence does not show what is there: it must be something that is known to be there.
            values = [value for (name, _), value in self.relations.items() if name == rule.relation]
            agrees = filler in values or not values or self.gaps
        else:
            known = self.relations.get((rule.relation, holder))
            agrees = rule.verb == "set" or known is None or known == filler
            if rule.verb == "set" or known is None:
                step.relations[rule.relation, holder] = filler
        if not agrees:
            step.problems.append(_RELATION_KIND.get(rule.relation, PLACE))

    def _commit(self, step: Step) -> None:
        self.stages.add(EVENTS[step.event].stage)
        for name in step.new_characters:
            self.characters.setdefault(name, {})
        self.things += step.new_things
        for owner, attribute, word in step.attributes:
            if isinstance(owner, str):
                self.characters.setdefault(owner, {}).setdefault(attribute, word)
            elif not getattr(owner, attribute):
                setattr(owner, attribute, word)
        for (name, key), value in step.relations.items():
            if name == "goal":
                self.goals[key] = value
            else:
                self.relations[name, key] = value
        if step.subject is not None:
            self.subject = step.subject

    def resolved(self) -> float:
        """Share of the goals that were set and are reached; 0 where none was set."""
        return sum(state == "done" for state in self.goals.values()) / len(self.goals) if self.goals else 0.0


_NAMES = frozenset(lexicon.NAMES)
_KIND_PRONOUN = {"girl": "she", "boy": "he"}


def _pronoun_of(name: str) -> str | None:
    return lexicon.NAME_PRONOUN.get(name)
