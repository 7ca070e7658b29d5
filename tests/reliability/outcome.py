"""What trying a fault came to."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Outcome:
    """fault: what was done; tried: how often; held: how often all was as promised; detail: what that was."""

    fault: str
    tried: int
    held: int
    detail: str
