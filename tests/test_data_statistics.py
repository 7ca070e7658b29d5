"""mla_jax.data.statistics and progress: figures of a part counted by hand; lines where there is no terminal."""

import json

import numpy as np
import pytest

from mla_jax.data import progress, statistics
from mla_jax.data.progress import Progress
from mla_jax.data.token_file import TokenFile


def part(lengths: list[int]) -> TokenFile:
    starts = np.cumsum([0, *(length + 1 for length in lengths)])
    return TokenFile(np.zeros(starts[-1] + 1, np.uint16), starts, np.asarray([4 * n for n in lengths]), 0)


def test_figures_are_those_counted_by_hand() -> None:
    lengths = [*range(1, 101), 5000]
    found = statistics.describe(part(lengths))
    assert (found["stories"], found["bytes"]) == (101, 4 * sum(lengths))
    assert found["tokens"] == sum(lengths) + 102
    assert found["bytes_per_token"] == pytest.approx(found["bytes"] / found["tokens"], abs=1e-4)
    assert found["story_tokens"] == {
        "shortest": 1, "p5": 6, "median": 51, "p95": 96, "longest": 5000, "mean": round(sum(lengths) / 101, 2)
    }  # fmt: skip
    edges, counts = found["histogram"]["tokens"], found["histogram"]["stories"]
    by_hand = [sum(low <= n < high for n in lengths) for low, high in zip(edges, [*edges[1:], 10**9], strict=True)]
    assert edges[:3] == [0, 10, 20] and len(edges) == 12 and counts == by_hand and sum(counts) == 101
    assert json.dumps(found)


@pytest.mark.parametrize(
    ("lengths", "edges"),
    [([3], [0, 1, 2, 3]), ([12, 12], [0, 2, 4, 6, 8, 10, 12]), ([10**6], [10**5 * i for i in range(11)])],
)
def test_bins_suit_any_lengths(lengths: list[int], edges: list[int]) -> None:
    found = statistics.describe(part(lengths))["histogram"]
    assert found["tokens"] == edges
    assert found["stories"] == [0] * (len(edges) - 1) + [len(lengths)]


def test_lines_say_what_is_in_the_figures() -> None:
    first, second = statistics.lines(statistics.describe(part([10] * 3 + [30])))
    assert "240 bytes, 3.69 per token; 15 tokens a story" in first and "30 at most" in first
    assert second.startswith("stories by tokens") and "75.0 %" in second and "25.0 %" in second and " 0.0" not in second


def test_progress_goes_to_stderr_and_ends_with_its_last_line(capsys, monkeypatch) -> None:
    monkeypatch.setattr(progress, "_LINE_SECONDS", 0.0)
    with Progress("Reading", 4) as shown:
        shown.advance()
        monkeypatch.setattr(progress, "_LINE_SECONDS", 60.0)
        shown.advance(3)
    with Progress("Fetching", None) as shown:
        shown.advance(5)  # quick enough to say nothing
    out, err = capsys.readouterr()
    assert out == "" and err.splitlines() == ["Reading: 25 % of 4 stories", "Reading: 100 % of 4 stories"]
    monkeypatch.setattr(progress, "_LINE_SECONDS", 0.0)
    with Progress("Fetching", None) as shown:
        shown.advance(5)
    with Progress("Asking", 4, unit="answers") as shown:
        shown.advance(4)
    with Progress("Reading", 4, quiet=True) as shown:
        shown.advance(4)
    assert capsys.readouterr().err == "Fetching: 5 stories\nAsking: 100 % of 4 answers\n"
