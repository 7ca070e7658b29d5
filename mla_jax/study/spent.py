"""Device seconds that calls before this one gave to a run: kept in its folder (spent.json) until its row has them.

A call that was killed leaves none: nobody knows when it ended.
"""

import contextlib
import json
import math
from pathlib import Path

from mla_jax.files import parsed, write_text


def device_s(folder: Path) -> float:
    """Seconds; 0 where nothing, or nothing that can be read, is kept."""
    path = _file(folder)
    try:
        kept = (parsed(path.read_text(encoding="utf-8", errors="replace")) or {}).get("device_s")
        seconds = float(kept) if isinstance(kept, int | float) else 0.0
    except (OSError, OverflowError):
        return 0.0
    return seconds if 0 < seconds < math.inf else 0.0


def keep(folder: Path, seconds: float) -> None:
    """Keep the sum of all calls so far. A run without a folder has nothing to go on with, and keeps nothing; seconds
    that cannot be written are not worth a result."""
    with contextlib.suppress(OSError):
        write_text(_file(folder), json.dumps({"device_s": round(seconds, 3)}) + "\n")


def forget(folder: Path) -> None:
    """Once the row has them and the checkpoints are gone: a row that is lost is trained again from nothing."""
    with contextlib.suppress(OSError):
        _file(folder).unlink(missing_ok=True)


def _file(folder: Path) -> Path:
    return folder / "spent.json"
