"""Figures for files: made without pyplot, whose backend belongs to the caller (a notebook's shows what it draws)."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def subplots(rows: int = 1, columns: int = 1, squeeze: bool = True, **settings: Any) -> "tuple[Figure, Any]":
    """A figure and its axes, as matplotlib's pyplot.subplots returns them; settings (figsize, ...) are the figure's.

    Nothing holds on to it: there is no display and nothing to close. A notebook cell shows it as its last value.
    """
    from matplotlib.figure import Figure

    figure = Figure(**{"layout": "constrained", **settings})
    return figure, figure.subplots(rows, columns, squeeze=squeeze)
