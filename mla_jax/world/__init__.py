"""a world of stories that knows its own facts: the embedded corpus, its questions, its grammar."""

from .generate import WORLD_VERSION, stories

__all__ = ["WORLD_VERSION", "stories"]
