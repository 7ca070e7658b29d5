"""mla_jax.train.metrics: rows written through at once, cut off at the step a run resumes from; progress output."""

import io
import json
from pathlib import Path

import pytest
import rich.console

from mla_jax.rows import read_rows
from mla_jax.runs import RunFolder
from mla_jax.train.metrics import MetricsWriter, Progress


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path)


def steps(folder: RunFolder) -> list[tuple[str, int]]:
    return [(row["kind"], row["step"]) for row in read_rows(folder.metrics)]


def test_a_row_is_in_the_file_when_write_returns(folder: RunFolder) -> None:
    with MetricsWriter(folder, 0, tensorboard=False) as writer:
        writer.write("train", 1, {"loss": 2.5, "grad_norm": 1.0})
        (row,) = read_rows(folder.metrics)
    assert (row["step"], row["kind"], row["loss"], row["grad_norm"]) == (1, "train", 2.5, 1.0)
    assert row["time"] > 0
    assert not folder.tensorboard.exists()


def test_rows_after_the_step_that_is_resumed_from_go(folder: RunFolder) -> None:
    with MetricsWriter(folder, 0, tensorboard=False) as writer:
        for step in range(1, 8):
            writer.write("train", step, {"loss": 1.0})
        writer.write("eval", 4, {"loss": 1.0})
        writer.write("eval", 6, {"loss": 1.0})
    with folder.metrics.open("a") as file:
        file.write('{"step": 8, "ki')  # killed while writing
    with MetricsWriter(folder, 5, tensorboard=False) as writer:
        writer.write("train", 6, {"loss": 9.0})
    assert steps(folder) == [("train", step) for step in range(1, 6)] + [("eval", 4), ("train", 6)]
    for line in folder.metrics.read_text().splitlines():
        json.loads(line)


def test_a_step_that_is_evaluated_again_after_a_kill_has_one_row(folder: RunFolder) -> None:
    """The last checkpoint was there and the report was not: the next start evaluates that step again."""
    with MetricsWriter(folder, 0, tensorboard=False) as writer:
        for kind in ("train", "eval", "experts"):
            writer.write(kind, 4, {"loss": 1.0})
        writer.write("startup", 0, {"total": 1.0})
    with MetricsWriter(folder, 4, tensorboard=False) as writer:
        for kind in ("eval", "experts"):
            writer.write(kind, 4, {"loss": 1.0})
        writer.write("startup", 4, {"total": 1.0})
        writer.write("startup", 4, {"total": 1.0})
        writer.write("eval", 8, {"loss": 0.5})
        writer.cut(4)
        writer.write("eval", 8, {"loss": 0.25})
    wanted = [("train", 4), ("eval", 4), ("experts", 4), ("startup", 0), ("startup", 4), ("startup", 4), ("eval", 8)]
    assert steps(folder) == wanted
    assert read_rows(folder.metrics)[-1]["loss"] == 0.25


def test_a_fresh_start_begins_an_empty_file(folder: RunFolder) -> None:
    folder.metrics.write_text('{"step": 0, "kind": "train", "loss": 1}\n{"step": 3, "kind": "train", "loss": 1}\n')
    with MetricsWriter(folder, 0, tensorboard=False):
        pass
    assert folder.metrics.read_text() == ""


def test_tensorboard_gets_the_same_numbers(folder: RunFolder) -> None:
    with MetricsWriter(folder, 0, tensorboard=True) as writer:
        writer.write("eval", 7, {"loss": 0.25})
    from tensorboardX.proto.event_pb2 import Event

    (path,) = folder.tensorboard.iterdir()
    data, values = path.read_bytes(), {}
    while data:  # TFRecord: length (8 bytes), its checksum (4), the event, its checksum (4)
        length = int.from_bytes(data[:8], "little")
        event = Event.FromString(data[12 : 12 + length])
        values |= {(value.tag, event.step): value.simple_value for value in event.summary.value}
        data = data[16 + length :]
    assert values == {("eval/loss", 7): 0.25}


def show(terminal: bool) -> str:
    out = io.StringIO()
    console = rich.console.Console(file=out, force_terminal=terminal, width=200)
    with Progress(console, 0, 10) as progress:
        progress.update(5, 3.25, 12_345.6, 0.321, 65.0)
        progress.say("[bold] a line with [brackets]")
    return out.getvalue()


def test_progress_is_plain_lines_without_a_terminal() -> None:
    assert show(terminal=False).splitlines() == [
        "step 5/10 · loss 3.250 · 12,346 tokens/s · MFU 32.1% · 1:05 left",
        "[bold] a line with [brackets]",
    ]


def test_progress_is_a_bar_on_a_terminal() -> None:
    text = show(terminal=True)
    assert "step 5/10" in text and "loss 3.250" in text and "\x1b[" in text
    assert "[bold] a line with [brackets]" in text


def test_an_unknown_mfu_is_left_out() -> None:
    out = io.StringIO()
    with Progress(rich.console.Console(file=out, width=200), 0, 10) as progress:
        progress.update(1, 3.25, 10.0, None, 0.0)
    assert "10 tokens/s ·" in out.getvalue() and "MFU" not in out.getvalue()
