"""Story rows from a seed: story i is a pure function of (seed, split, i)."""

from collections.abc import Iterator

from ..errors import UserError
from .cast import SPLITS, Cast
from .dice import Dice, mix64, mix_text
from .plots import PLOTS
from .render import Renderer

# Raise it whenever any story changes: prepared corpora are cached under it.
WORLD_VERSION = 1


def stories(count: int, seed: int, split: str = "train", start: int = 0) -> Iterator[dict]:
    """Stream the story rows `start` ... `start + count - 1` of one split.

    Each row is `{"id", "text", "facts", "source": "world"}`. `facts` holds the plot, the entities, the
    events in order with the sentence's first character, and the facts with the character spans where
    each is stated: the first span is the set-up, the others are uses.

    Raises UserError for an unknown split or a negative count.
    """
    if split not in SPLITS:
        raise UserError(f"The world has no split {split!r}; choose one of {', '.join(SPLITS)}.")
    if count < 0 or start < 0:
        raise UserError(f"Cannot generate {count} stories from number {start}: both must be 0 or more.")
    base = mix64(mix64(seed & (1 << 64) - 1) ^ mix_text(split))
    return (_story(base, split, seed, index) for index in range(start, start + count))


def _story(base: int, split: str, seed: int, index: int) -> dict:
    dice = Dice(mix64(base ^ mix64(index)))
    cast = Cast(dice, split)
    plot = dice.pick(_PLOT_NAMES)
    renderer = Renderer(dice)
    plan = PLOTS[plot](cast, dice)
    for kind, roles in plan:
        renderer.event(kind, roles)
    return {
        "id": f"world-{split}-{seed}-{index}",
        "text": renderer.text(),
        "facts": {
            "plot": plot,
            "entities": {entity.id: entity.describe() for entity in cast.entities},
            "events": [
                [kind, start, {role: entity.id for role, entity in roles.items()}]
                for (kind, start), (_, roles) in zip(renderer.sentences, plan, strict=True)
            ],
            "facts": [
                {"entity": entity, "kind": kind, "value": value, "setup": spans[0], "uses": spans[1:]}
                for (entity, kind, value), spans in renderer.facts.items()
            ],
        },
        "source": "world",
    }


_PLOT_NAMES = tuple(PLOTS)
