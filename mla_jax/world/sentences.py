"""Splitting a story into words and sentences, for the checker and the measures."""

import re

# Words keep inner hyphens and apostrophes ("hide-and-seek", "don't"); every other sign stands alone.
_TOKEN = re.compile(r"[A-Za-z]+(?:['’-][A-Za-z]+)*|[0-9]+|[^\sA-Za-z0-9]")
_STOPS = (".", "!", "?")
# No sentence of the world is longer; a text without stops is cut here.
MAX_TOKENS = 60


def tokenize(text: str) -> list[str]:
    """Words and signs, in order."""
    return _TOKEN.findall(text)


def split(tokens: list[str]) -> list[list[str]]:
    """Cut tokens into sentences at full stops, never inside quotation marks.

    `"Help!" cried Tom.` is one sentence: behind a closing quote a small letter goes on. A quote that is never
    closed ends with its sentence after `MAX_TOKENS` tokens.
    """
    sentences = []
    current: list[str] = []
    quoted = False
    for index, token in enumerate(tokens):
        current.append(token)
        following = tokens[index + 1] if index + 1 < len(tokens) else ""
        if token == '"':
            quoted = not quoted
            ends = not quoted and len(current) > 1 and current[-2] in _STOPS and not following[:1].islower()
        else:
            ends = token in _STOPS and not quoted
        if ends or len(current) >= MAX_TOKENS:
            sentences.append(current)
            current = []
            quoted = False
    if current:
        sentences.append(current)
    return sentences
