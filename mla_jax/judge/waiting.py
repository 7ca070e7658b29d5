"""When to ask again: what a server says in Retry-After, exponential backoff with jitter where it says
nothing.
"""

import asyncio
import email.utils
import random
import time
from collections.abc import Mapping

MAX_BACKOFF_S = 60.0
# A server that asks for more than this is done for now: better to stop and be told so than to sit idle.
MAX_ASKED_S = 900.0


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that the server asks to wait (`retry-after-ms`, or `retry-after` in seconds or as a date),
    or None.
    """
    for name, unit in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        try:
            wait = float(headers.get(name, "")) * unit
        except ValueError:
            continue
        if 0 <= wait < float("inf"):
            return wait
    try:
        date = email.utils.parsedate_tz(headers.get("retry-after", ""))
        return max(0.0, email.utils.mktime_tz(date) - time.time()) if date else None
    except (ValueError, OverflowError, TypeError):  # a date that no calendar has
        return None


def backoff(attempt: int) -> float:
    """Seconds before try number `attempt` + 1: 0.5, 1, 2 ... 60, cut by up to a half at random."""
    return random.uniform(0.5, 1.0) * min(MAX_BACKOFF_S, 0.5 * 2 ** min(attempt - 1, 20))


class Gate:
    """Holds back every request until the moment that the server named to any of them."""

    def __init__(self) -> None:
        self._open_at = 0.0

    def close_for(self, seconds: float) -> None:
        self._open_at = max(self._open_at, time.monotonic() + seconds)

    async def wait(self) -> None:
        """Returns when the gate is open; jitter keeps the waiting requests from leaving all at once."""
        while (left := self._open_at - time.monotonic()) > 0:
            await asyncio.sleep(left + random.uniform(0, 0.1 + 0.1 * left))
