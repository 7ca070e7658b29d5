"""Where metrics go: metrics.jsonl, TensorBoard and the terminal."""

import json
import time
from typing import Any

import rich.console
import rich.progress

from mla_jax.files import write_text
from mla_jax.rows import read_rows
from mla_jax.runs import RunFolder
from mla_jax.terminal import say


class MetricsWriter:
    """metrics.jsonl and TensorBoard of one run. Rows after `resume_step` (of a run that was killed) are cut off."""

    def __init__(self, folder: RunFolder, resume_step: int, tensorboard: bool):
        self._path = folder.metrics
        self._open_up_to(resume_step)
        self._board = None
        if tensorboard:
            from tensorboardX import SummaryWriter  # half a second to import

            self._board = SummaryWriter(str(folder.tensorboard), purge_step=resume_step + 1)

    def _open_up_to(self, step: int) -> None:
        kept = [row for row in read_rows(self._path) if row["step"] <= step] if step else []
        self._newest = {row.get("kind"): row["step"] for row in kept}
        write_text(self._path, "".join(json.dumps(row) + "\n" for row in kept))
        self._file = self._path.open("a", encoding="utf-8")

    def cut(self, step: int) -> None:
        """Forget the rows after `step`: training went back to it. (TensorBoard keeps both branches.)"""
        self._file.close()
        self._open_up_to(step)

    def __enter__(self) -> "MetricsWriter":
        return self

    def __exit__(self, *error: Any) -> None:
        self._file.close()
        if self._board:
            self._board.close()

    def write(self, kind: str, step: int, values: dict[str, Any]) -> None:
        """kind: "train", "eval" or "experts". Written through to the file at once; lists are not for TensorBoard.

        A run that was killed after its last checkpoint evaluates that step again: a step has one row of a kind.
        """
        if kind != "startup" and self._newest.get(kind) == step:
            return
        self._newest[kind] = step
        row = {"step": step, "kind": kind, **values, "time": round(time.time(), 3)}
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()
        if self._board:
            for name, value in values.items():
                if isinstance(value, list):
                    continue
                self._board.add_scalar(f"{kind}/{name}", value, step)


class NoWriter:
    """What a process that is not the first writes: nothing."""

    def __enter__(self) -> "NoWriter":
        return self

    def __exit__(self, *error: Any) -> None:
        pass

    def write(self, kind: str, step: int, values: dict[str, float]) -> None:
        pass

    def cut(self, step: int) -> None:
        pass


class Progress:
    """A rich progress bar on a terminal, plain lines elsewhere (logs, notebooks' subprocesses, CI)."""

    def __init__(self, console: rich.console.Console, start: int, total: int):
        self._console, self._total = console, total
        self._bar = None
        if console.is_terminal:
            self._bar = rich.progress.Progress(
                rich.progress.TextColumn("step {task.completed}/{task.total}"),
                rich.progress.BarColumn(),
                rich.progress.TextColumn("{task.fields[text]}"),
                rich.progress.TimeRemainingColumn(),
                console=console,
            )
            self._task = self._bar.add_task("train", total=total, completed=start, text="compiling")

    def __enter__(self) -> "Progress":
        if self._bar:
            self._bar.start()
        return self

    def __exit__(self, *error: Any) -> None:
        if self._bar:
            self._bar.stop()

    def update(self, step: int, loss: float, tokens_per_s: float, mfu: float | None, seconds_left: float) -> None:
        text = f"loss {loss:.3f} · {tokens_per_s:,.0f} tokens/s" + (f" · MFU {mfu:.1%}" if mfu is not None else "")
        if self._bar:
            self._bar.update(self._task, completed=step, text=text)
        else:
            minutes, seconds = divmod(int(seconds_left), 60)
            self.say(f"step {step}/{self._total} · {text} · {minutes}:{seconds:02d} left")

    def say(self, line: str) -> None:
        """A line above the bar."""
        say(self._bar.console if self._bar else self._console, line)
