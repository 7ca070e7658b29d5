"""Tables in Markdown."""

from collections.abc import Iterable


def table(head: Iterable[object], rows: Iterable[Iterable[object]]) -> str:
    """A table, without a line end behind it. head: the columns' titles; rows: as many cells each."""
    head = list(head)
    return "\n".join([line(head), "|" + "---|" * len(head), *map(line, rows)])


def line(cells: Iterable[object]) -> str:
    """A row of a table, for one that is printed as it grows."""
    return "| " + " | ".join(map(cell, cells)) + " |"


def cell(value: object) -> str:
    """A value as it may stand in a table: on one line, and without a bar that would end it."""
    return " ".join(str(value).replace("|", "\\|").split())
