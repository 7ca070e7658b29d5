"""What a prepared part is like: counts, bytes per token, and how long its stories are."""

from typing import Any

import numpy as np

from mla_jax.data.token_file import TokenFile

_BINS = 12
_QUANTILES = {"shortest": 0.0, "p5": 0.05, "median": 0.5, "p95": 0.95, "longest": 1.0}


def describe(part: TokenFile) -> dict[str, Any]:
    """JSON-able: stories, bytes, tokens (separators included), bytes_per_token, and the lengths of the stories.

    story_tokens: quantiles and mean of a story's tokens, without separators. histogram: {"tokens": lower edges of bins
    of equal width, the last one open, "stories": how many are in each}.
    """
    lengths = np.diff(part.story_starts) - 1
    quantiles = np.quantile(lengths, list(_QUANTILES.values()), method="lower")
    width = _width(int(np.quantile(lengths, 0.99, method="lower")))
    counts = np.bincount(np.minimum(lengths // width, _BINS - 1))
    return {
        "stories": part.n_stories,
        "bytes": part.n_bytes,
        "tokens": len(part.tokens),
        "bytes_per_token": round(part.n_bytes / len(part.tokens), 4),
        "story_tokens": {
            **{name: int(value) for name, value in zip(_QUANTILES, quantiles, strict=True)},
            "mean": round(float(lengths.mean()), 2),
        },
        "histogram": {"tokens": [width * i for i in range(len(counts))], "stories": counts.tolist()},
    }


def _width(high: int) -> int:
    """The least of 1, 2, 5, 10, 20, 50, ... of which _BINS reach beyond `high`."""
    widths = (digit * 10**power for power in range(18) for digit in (1, 2, 5))
    return next(width for width in widths if width * _BINS > high)


def lines(stats: dict[str, Any]) -> list[str]:
    """Two lines for people on one part's `describe`."""
    lengths, histogram = stats["story_tokens"], stats["histogram"]
    bins = [
        f"{low}+: {100 * count / stats['stories']:.1f} %"
        for low, count in zip(histogram["tokens"], histogram["stories"], strict=True)
        if count
    ]
    return [
        f"{stats['bytes']:,} bytes, {stats['bytes_per_token']:.2f} per token; {lengths['mean']:,.0f} tokens a story "
        f"(5 % at most {lengths['p5']:,}, half {lengths['median']:,}, 95 % {lengths['p95']:,}; {lengths['longest']:,} "
        "at most)",
        f"stories by tokens  {'  '.join(bins)}",
    ]
