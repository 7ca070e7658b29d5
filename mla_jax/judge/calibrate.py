"""Does the checker's score follow the damage? `python -m mla_jax.judge.calibrate --plot calibration.png`.

Prints the mean score of corpus stories spoiled in five ways at four strengths, and draws it on request; and how many
wrong answers to fact questions it finds, each put into a story in the right one's place.
"""

import argparse
from collections import Counter
from typing import Any

from .. import figures, markdown
from ..world.dice import Dice
from ..world.generate import stories
from ..world.questions import probes
from .checker import check, check_many, summarize
from .corruptions import CORRUPTIONS, STRENGTHS


def calibrate(texts: list[str], seed: int = 0) -> dict[str, list[dict[str, float]]]:
    """corruption -> the mean metrics of the spoiled texts at strength 0 and each of `STRENGTHS`, in order."""
    return {
        name: [summarize(check_many(corrupt(text, strength, dice) for text in texts)) for strength in (0.0, *STRENGTHS)]
        for name, corrupt in CORRUPTIONS.items()
        for dice in [Dice(seed)]
    }


def wrong_answers(told: list[dict[str, Any]]) -> dict[str, tuple[int, int]]:
    """Kind of question -> (stories found to contradict themselves, of so many): each of a question about a corpus story
    of `told` with the first wrong candidate in its answer's place."""
    found, asked = Counter(), Counter()
    for row in told:
        for probe in probes([row]):
            if len(probe.candidates) < 2:
                continue
            rest = row["text"].removeprefix(probe.prefix + probe.answer)
            asked[probe.kind] += 1
            found[probe.kind] += check(probe.prefix + probe.candidates[1] + rest).share("well_formed") < 1
    return {kind: (found[kind], asked[kind]) for kind in sorted(asked)}


def draw(table: dict[str, list[dict[str, float]]], path: str) -> None:
    """One line a corruption: strength against score."""
    figure, axes = figures.subplots(figsize=(6, 4))
    for number, (name, rows) in enumerate(table.items()):
        scores = [row["score"] for row in rows]
        axes.plot((0.0, *STRENGTHS), scores, **figures.look(number, marks=True), label=name)
    axes.set_xlabel("strength of the corruption")
    axes.set_ylabel("checker score")
    axes.set_ylim(0, 1.02)
    axes.legend()
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--stories", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--plot", default="", help="write the figure here")
    arguments = parser.parse_args()
    told = list(stories(arguments.stories, arguments.seed, "valid"))
    table = calibrate([row["text"] for row in told], arguments.seed)
    head = ("corruption", *(f"{strength:.2f}" for strength in (0.0, *STRENGTHS)))
    print(markdown.table(head, ((name, *(f"{row['score']:.3f}" for row in rows)) for name, rows in table.items())))
    lines = ((kind, f"{n:,} of {of:,}", f"{n / of:.0%}") for kind, (n, of) in wrong_answers(told).items())
    print("\n" + markdown.table(("wrong answer", "found", ""), lines))
    if arguments.plot:
        draw(table, arguments.plot)


if __name__ == "__main__":
    main()
