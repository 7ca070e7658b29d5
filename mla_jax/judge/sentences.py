"""Splitting a story into sentences, losslessly enough to put it together again in another order."""

import re

# A sentence ends after . ! ? and any closing quotes or brackets, before white space or the end of the text
# ...
_END = re.compile(r"""[.!?…]+["'”’)\]]*(?=\s|$)""")
# ... unless the stop belongs to a title or an initial, or the sentence runs on in small letters ('"Stop!"
# he said').
_TITLE = re.compile(r"\b(?:Mr|Mrs|Ms|Dr|St|[A-Z])\.$")


def split_sentences(text: str) -> list[tuple[str, str]]:
    """`[(sentence, white space after it), ...]`; joining all parts gives `text.strip()` back."""
    text = text.strip()
    parts, start = [], 0
    for match in _END.finditer(text):
        end = match.end()
        rest = text[end:].lstrip()
        if _TITLE.search(text[start:end]) or (rest and rest[0].islower()):
            continue
        gap = len(text[end:]) - len(rest)
        parts.append((text[start:end], text[end : end + gap]))
        start = end + gap
    if start < len(text):
        parts.append((text[start:], ""))
    return parts


def first_sentence(text: str) -> str:
    """The first sentence of a story; "" for an empty one."""
    parts = split_sentences(text)
    return parts[0][0] if parts else ""
