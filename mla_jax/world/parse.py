"""From a sentence back to its skeleton: all skeletons of the world as one token trie."""

from dataclasses import dataclass, field
from functools import cache, lru_cache

from . import lexicon
from .events import EVENTS
from .grammar import (
    ARTICLE,
    CHOICE,
    FREE,
    LITERAL,
    SUBJECT,
    THERE,
    Part,
    Skeleton,
    closers,
    openers,
    skeletons,
)
from .sentences import tokenize

Binding = tuple[str, str, str]  # role, attribute, the word shown; attribute "subject" for a bare {A}


@dataclass(frozen=True, slots=True)
class Parse:
    """One reading of a sentence: the event told and what its slots show."""

    skeleton: Skeleton
    bindings: tuple[Binding, ...]


@dataclass(slots=True)
class _Node:
    literals: dict[str, "_Node"] = field(default_factory=dict)
    slots: dict[Part, "_Node"] = field(default_factory=dict)
    ends: list[Skeleton] = field(default_factory=list)
    closing: list[Skeleton] = field(default_factory=list)  # a closing clause may start here


def parse(tokens: list[str]) -> tuple[Parse, ...]:
    """All readings of one sentence (tokens of `sentences.tokenize`); none if the grammar does not have it."""
    return _parse(tuple(tokens))


@lru_cache(maxsize=1 << 15)
def _parse(raw: tuple[str, ...]) -> tuple[Parse, ...]:
    first = 1 if raw and raw[0] == '"' else 0
    if first >= len(raw) or not raw[first][0].isupper():
        return ()
    low = tuple(token.lower() for token in raw)
    found: list[Parse] = []
    _walk(_trie(), raw, low, 0, (), found, None)
    for length, stages in _opener_tokens().get(low[0], ()):
        if low[: len(length)] == length:
            _walk(_trie(), raw, low, len(length), (), found, stages)
    return tuple(found)


def _walk(node: _Node, raw, low, at: int, bound: tuple, found: list[Parse], stages) -> None:
    """Depth-first over the trie; `stages`: where an opener was read, the stages that it may open."""
    if at == len(raw):
        for skeleton in node.ends:
            if stages is None or (skeleton.opens and EVENTS[skeleton.event].stage in stages):
                found.append(Parse(skeleton, bound))
        return
    token = low[at]
    following = node.literals.get(token)
    if following is not None:
        _walk(following, raw, low, at + 1, bound, found, stages)
    for part, child in node.slots.items():
        for word, end in _match(part, raw, low, at):
            if not part.role:
                _walk(child, raw, low, end, bound, found, stages)
                continue
            attribute = "subject" if part.type == SUBJECT else "noun" if part.type == THERE else part.attribute
            _walk(child, raw, low, end, (*bound, (part.role, attribute, word)), found, stages)
    if token == "," and node.closing and _is_closer(low[at:-1]) and low[-1] == ".":
        for skeleton in node.closing:
            if stages is None or EVENTS[skeleton.event].stage in stages:
                found.append(Parse(skeleton, bound))


def _match(part: Part, raw, low, at: int) -> list[tuple[str, int]]:
    """(word, position behind it) for each way in which `part` can read the tokens from `at` on."""
    kind = part.type
    if kind == FREE:
        return [("", at + 1)] if low[at] in _free_words(part.text) else []
    if kind == CHOICE:
        return [
            ("", at + len(option)) for option in _choice_tokens(part.options) if low[at : at + len(option)] == option
        ]
    if kind == ARTICLE:
        fits = at + 1 < len(low) and low[at] in ("a", "an") and lexicon.article(low[at + 1]) == low[at]
        return [("", at + 1)] if fits else []
    if kind == THERE:
        if at + 2 < len(low) and low[at + 1] == "the" and _PLACES.get(low[at + 2]) == low[at]:
            return [(low[at + 2], at + 3)]
        return []
    if kind == SUBJECT:
        if low[at] in ("she", "he"):
            return [(low[at], at + 1)]
        return [(raw[at], at + 1)] if raw[at] in _NAMES else []
    if part.attribute == "name":
        return [(raw[at], at + 1)] if raw[at] in _NAMES else []
    words = _attribute_words(part.role, part.attribute)
    return [(words[low[at]], at + 1)] if low[at] in words else []


_NAMES = frozenset(lexicon.NAMES)
_PLACES = lexicon.PLACE_PREPOSITION


@cache
def _free_words(name: str) -> frozenset[str]:
    return frozenset(word.lower() for word in lexicon.FREE[name])


@cache
def _choice_tokens(options: tuple[str, ...]) -> tuple[tuple[str, ...], ...]:
    return tuple(tuple(token.lower() for token in tokenize(option)) for option in options)


@cache
def _attribute_words(role: str, attribute: str) -> dict[str, str]:
    """word shown -> the word that it stands for (a plural's singular; a pronoun's subject form)."""
    if attribute in ("he", "him", "his", "himself"):
        return {forms[attribute]: subject for subject, forms in lexicon.PRONOUNS.items()}
    if attribute == "many":
        return {lexicon.plural(food): food for food in lexicon.FOODS}
    if attribute == "noun":
        return {word: word for word in lexicon.nouns(role)}
    return {word: word for word in lexicon.ATTRIBUTES[attribute]}


@cache
def _opener_tokens() -> dict[str, list]:
    """first token -> [(the opener's tokens, the stages it may open)]."""
    table: dict[str, list] = {}
    for stage in sorted({event.stage for event in EVENTS.values()}):
        for opener in openers(stage):
            tokens = tuple(token.lower() for token in tokenize(opener))
            row = table.setdefault(tokens[0], [])
            for entry in row:
                if entry[0] == tokens:
                    entry[1].add(stage)
                    break
            else:
                row.append((tokens, {stage}))
    return table


@lru_cache(maxsize=1 << 12)
def _is_closer(low: tuple[str, ...]) -> bool:
    found: list[Parse] = []
    _walk(_closer_trie(), low, low, 0, (), found, None)
    return bool(found)


@cache
def _closer_trie() -> _Node:
    root = _Node()
    for parts in closers():
        _insert(root, parts).ends.append(Skeleton("weather", "", parts, True, False, ""))
    return root


@cache
def _trie() -> _Node:
    root = _Node()
    for options in skeletons().values():
        for skeleton in options:
            end = _insert(root, skeleton.parts)
            end.ends.append(skeleton)
            if skeleton.closes:
                last = Part(LITERAL, text=skeleton.parts[-1].text[:-1])
                _insert(root, (*skeleton.parts[:-1], last)).closing.append(skeleton)
    return root


def _insert(root: _Node, parts: tuple[Part, ...]) -> _Node:
    node = root
    for part in parts:
        if part.type == LITERAL:
            for token in tokenize(part.text):
                node = node.literals.setdefault(token.lower(), _Node())
        else:
            node = node.slots.setdefault(part, _Node())
    return node
