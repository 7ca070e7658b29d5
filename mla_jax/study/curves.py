"""Where a curve of losses reaches a loss."""

import math
from collections.abc import Sequence

Curve = Sequence[Sequence[float]]  # (step, loss), ...


def lowest(curve: Curve) -> float:
    """The lowest loss of the curve."""
    return min(loss for _, loss in curve)


def steps_to(curve: Curve, loss: float) -> float:
    """The step at which `curve` first has `loss` or less, linearly between evaluations; infinite where it never does.

    A curve that has it at its first evaluation is given that step: no earlier one is known.
    """
    before = None
    for step, value in curve:
        if value <= loss:
            if before is None or before[1] == value:
                return float(step)
            return before[0] + (before[1] - loss) / (before[1] - value) * (step - before[0])
        before = (step, value)
    return math.inf
