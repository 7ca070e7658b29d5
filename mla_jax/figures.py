"""Figures for files: made without pyplot, whose backend belongs to the caller (a notebook's shows what it draws)."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLORS = 10  # in matplotlib's cycle
DASHES = ("-", "--", "-.", ":")
MARKS = "osD^v<>PX*"


def look(number: int, marks: bool = False) -> dict[str, Any]:
    """Colour, dash and mark of a plot's line of this number, as axes.plot takes them; the first 200 all differ.

    Lines beyond the colours get another dash; lines beyond those have a mark, whether or not all are to have `marks`.
    """
    turn = number // COLORS
    mark = MARKS[(number + turn) % len(MARKS)] if marks or turn >= len(DASHES) else None
    return {"color": f"C{number % COLORS}", "linestyle": DASHES[turn % len(DASHES)], "marker": mark}


def subplots(rows: int = 1, columns: int = 1, squeeze: bool = True, **settings: Any) -> "tuple[Figure, Any]":
    """A figure and its axes, as matplotlib's pyplot.subplots returns them; settings (figsize, ...) are the figure's.

    Nothing holds on to it: there is no display and nothing to close. A notebook cell shows it as its last value.
    """
    from matplotlib.figure import Figure

    figure = Figure(**{"layout": "constrained", **settings})
    return figure, figure.subplots(rows, columns, squeeze=squeeze)
