"""The world's sentences, by kind of event; one module a plot, and three that all plots share."""

from . import (
    baking,
    broken,
    ending,
    errand,
    fear,
    journey,
    lost,
    mixup,
    opening,
    party,
    rescue,
    subplots,
    trade,
)

_MODULES = (
    opening,
    journey,
    lost,
    trade,
    broken,
    rescue,
    party,
    fear,
    baking,
    errand,
    mixup,
    subplots,
    ending,
)

PHRASES: dict[str, tuple[str, ...]] = {kind: sources for module in _MODULES for kind, sources in module.PHRASES.items()}
