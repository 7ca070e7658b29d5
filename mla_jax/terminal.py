"""Text on the terminal, just as it is."""

import rich.console


def say(console: rich.console.Console, text: str, style: str | None = None, end: str = "\n") -> None:
    """Print `text` and `end`, letter by letter as they are.

    Left to itself rich colours numbers, takes [words] for markup and :words: for emoji, and breaks long lines, so that
    a path could not be copied.
    """
    console.print(text, style=style, end=end, highlight=False, markup=False, emoji=False, soft_wrap=True)
