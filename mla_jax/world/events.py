"""What can happen, and what it does to the state of the story.

`stated` lists the relations that a sentence of this kind puts into words: (relation, holder role, filler role).
("owner", "O", "A") reads "the owner of O is A". The renderer turns them into facts with spans; the checker
holds them against what the story said before.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Event:
    """One kind of event: its stage in the story and the relations that it states."""

    stage: str
    stated: tuple[tuple[str, str, str], ...] = ()


EVENTS: dict[str, Event] = {
    "intro": Event("opening"),
    "home": Event("opening", (("home", "A", "P"),)),
    "has": Event("opening", (("owner", "O", "A"),)),
    "gift": Event("opening", (("owner", "O", "A"),)),
    "friend": Event("opening", (("friend", "A", "B"),)),
    "friend_has": Event("opening", (("owner", "O", "A"),)),
    "weather": Event("opening"),
    "go": Event("journey", (("at", "A", "P"),)),
    "go_together": Event("journey", (("at", "A", "P"),)),
    "play": Event("journey", (("at", "A", "P"),)),
    "lose": Event("trouble", (("owner", "O", "A"),)),
    "cry_loss": Event("trouble", (("owner", "O", "A"),)),
    "feel_sad": Event("trouble"),
    "comfort": Event("trouble"),
    "search": Event("search", (("searched", "A", "P"),)),
    "meet": Event("help"),
    "ask": Event("help"),
    "clue": Event("help", (("place", "O", "P"),)),
    "go_find": Event("search", (("place", "O", "P"),)),
    "find": Event("resolution", (("place", "O", "P"),)),
    "feel_happy": Event("resolution"),
    "thank": Event("resolution"),
    "go_home": Event("ending", (("home", "A", "P"),)),
    "keep": Event("ending", (("owner", "O", "A"),)),
    "remember": Event("ending"),
    "moral": Event("ending"),
}
