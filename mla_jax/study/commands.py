"""The commands behind a study's rows, told apart by what they trained; not by where, how long, beside how many."""

import collections
import re
import shlex
from collections.abc import Iterable

PLACE = ("--workdir", "--max_minutes", "--sharing", "--rows_only", "--config.keep_checkpoints")
_ORDER = re.compile(r"--config\.(only|plan_\w+|points\.[^.]+\.priority)")  # which runs, and which of them first


def told_apart(commands: Iterable[str]) -> list[tuple[str, int]]:
    """(command without such flags, how many rows have it), those of most rows first; a study was often done in dozens
    of calls that differ in nothing else."""
    counted = collections.Counter(map(_shortened, commands))
    return sorted(counted.items(), key=lambda pair: (-pair[1], pair[0]))


def _shortened(command: str) -> str:
    try:
        return shlex.join(_trained(shlex.split(command)))
    except ValueError:  # a quote that is not closed: a row written by other hands
        return command


def _trained(words: list[str]) -> list[str]:
    """The words of a command without flags of place and order, written --flag=value, --flag value or --flag."""
    kept, skip = [], False
    for word in words:
        flag = word.partition("=")[0]
        if flag in PLACE or _ORDER.fullmatch(flag):
            skip = flag == word and flag != "--rows_only"
        elif skip and not word.startswith("--"):
            skip = False  # the value of the flag before it
        else:
            kept.append(word)
            skip = False
    return kept
