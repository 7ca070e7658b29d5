"""The world's sentences, by kind of event."""

from . import lost

PHRASES: dict[str, tuple[str, ...]] = {**lost.PHRASES}
