"""Does the checker's score follow the damage? `python -m mla_jax.judge.calibrate --plot calibration.png`.

Prints the mean score of corpus stories spoiled in five ways at four strengths, and draws it on request.
"""

import argparse

from .. import figures, markdown
from ..world.dice import Dice
from ..world.generate import stories
from .checker import check_many, summarize
from .corruptions import CORRUPTIONS, STRENGTHS


def calibrate(texts: list[str], seed: int = 0) -> dict[str, list[dict[str, float]]]:
    """corruption -> the mean metrics of the spoiled texts at strength 0 and each of `STRENGTHS`, in order."""
    return {
        name: [summarize(check_many(corrupt(text, strength, dice) for text in texts)) for strength in (0.0, *STRENGTHS)]
        for name, corrupt in CORRUPTIONS.items()
        for dice in [Dice(seed)]
    }


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
    table = calibrate([row["text"] for row in stories(arguments.stories, arguments.seed, "valid")], arguments.seed)
    head = ("corruption", *(f"{strength:.2f}" for strength in (0.0, *STRENGTHS)))
    print(markdown.table(head, ((name, *(f"{row['score']:.3f}" for row in rows)) for name, rows in table.items())))
    if arguments.plot:
        draw(table, arguments.plot)


if __name__ == "__main__":
    main()
