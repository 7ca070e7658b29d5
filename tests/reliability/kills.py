"""kill -9 at random moments: after each, the next start works, and the end is what an undisturbed run gives."""

import contextlib
import dataclasses
import random
import re
import shutil
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from outcome import Outcome
from run_tools import REPOSITORY, call, listing, start, train_flags, write_stories

from mla_jax import checksums
from mla_jax.rows import read_rows
from mla_jax.runs import RunFolder
from mla_jax.study.report import TIME

LONG = {"train.steps": 160, "train.eval_every": 40, "checkpoint.every": 8, "checkpoint.keep_latest": 3}
TEMPORARY = re.compile(r"tmp|\.partial|\.new")  # what half-written things are called


@dataclasses.dataclass
class Place:
    """Where a kill test works: its corpus, its cache, folders of its own; `rng` decides when to kill.

    deadline: by time.monotonic(); trials make no further attempt after it, and say how many they made.
    programs: a folder of compiled programs that this place shares with others; None: all caches are its own.
    """

    folder: Path
    rng: random.Random
    deadline: float = float("inf")
    programs: Path | None = None

    def __post_init__(self) -> None:
        self.began = time.monotonic()
        self.folder.mkdir(parents=True, exist_ok=True)
        self.cache = self.new_cache("cache")
        self.stories = write_stories(self.folder / "stories.txt")

    def new_cache(self, name: str) -> Path:
        """A cache folder (MLA_JAX_CACHE), empty but for the shared programs."""
        cache = self.folder / name
        if self.programs and not cache.exists():
            cache.mkdir()
            self.programs.mkdir(exist_ok=True)
            (cache / "jax").symlink_to(self.programs)
        return cache

    def goes_on(self, made: int, planned: int, share: float = 1.0) -> bool:
        """Whether another attempt is to be made: at least one is. `share`: of the time up to the deadline."""
        if made == 0 or self.deadline == float("inf"):
            return made < planned
        return made < planned and time.monotonic() < self.began + share * (self.deadline - self.began)

    def command(self, run: Path) -> list[str]:
        return train_flags(self.stories, run, **LONG)


def killed(
    command: list[str], cache: Path, moment: Callable[[subprocess.Popen], None], **more: Any
) -> tuple[bool, str]:
    """Start, wait for the moment, kill -9. (whether it was killed before its end, what it had said)."""
    process = start(*command, cache=cache, **more)
    try:
        moment(process)
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGKILL)
        out, err = process.communicate()
    if process.returncode not in (0, -signal.SIGKILL):
        raise AssertionError(f"a start after a kill failed with {process.returncode}:\n{out}\n{err}")
    return process.returncode == -signal.SIGKILL, out


def after(seconds: float) -> Callable[[subprocess.Popen], None]:
    def moment(process: subprocess.Popen) -> None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(seconds)

    return moment


def being_written(run: Path) -> set[tuple[str, int]]:
    """Checkpoints that are being written, or were when a process was killed: name and inode."""
    found = set()
    for path in (run / "checkpoints").glob("*tmp*"):
        with contextlib.suppress(FileNotFoundError):
            found.add((path.name, path.stat().st_ino))
    return found


def in_a_save(run: Path, delay: float) -> Callable[[subprocess.Popen], None]:
    """A moment after a checkpoint that is being written has appeared; what an earlier kill left does not count."""
    left = being_written(run)

    def moment(process: subprocess.Popen) -> None:
        while process.poll() is None:
            if being_written(run) - left:
                time.sleep(delay)
                return
            time.sleep(0.0005)

    return moment


def reference(place: Place) -> tuple[Path, float]:
    """An undisturbed run, and how long it takes when nothing needs compiling."""
    run = place.folder / "undisturbed"
    if place.programs is None:
        call(*place.command(run), cache=place.cache)
        shutil.rmtree(run)
    began = time.monotonic()
    call(*place.command(run), cache=place.cache)
    return run, time.monotonic() - began


def check_between(run: Path, before: list[int]) -> list[int]:
    """After a kill: every committed checkpoint is whole, and none that should stay is lost."""
    steps = RunFolder(run).steps()
    for step in steps:
        checksums.check(run / "checkpoints" / str(step))
        assert (run / "checkpoints" / str(step) / checksums.NAME).exists(), f"step {step} has no checksums"
    assert not before or (steps and max(steps) >= max(before)), f"{before} -> {steps}: a checkpoint was lost"
    return steps


def check_end(run: Path, undisturbed: Path) -> None:
    """Weights, optimizer state, place in the data, metrics and samples are those of the undisturbed run."""
    left = [str(p) for p in run.rglob("*") if TEMPORARY.search(p.name)]
    assert left == [], f"left behind: {left}"
    a, b = (RunFolder(path) for path in (run, undisturbed))
    assert a.steps()[-1] == b.steps()[-1] == LONG["train.steps"]
    for one, two in zip(*(arrays(folder) for folder in (a, b)), strict=True):
        assert one.dtype == two.dtype and one.tobytes() == two.tobytes(), "the end differs from an undisturbed run's"
    ours, theirs = metrics(run), metrics(undisturbed)
    assert ours == theirs, [row for row in ours if row not in theirs] + [row for row in theirs if row not in ours]
    for name in ("samples.txt", "tokenizer.model"):
        assert (run / name).read_bytes() == (undisturbed / name).read_bytes(), name


def arrays(folder: RunFolder) -> list[Any]:
    """Every array of the newest checkpoint, read without knowing the model."""
    import jax
    import numpy as np
    import orbax.checkpoint as ocp

    path = (folder.checkpoints / str(folder.steps()[-1])).resolve()
    with contextlib.closing(ocp.PyTreeCheckpointer()) as checkpointer:
        found = [checkpointer.restore(path / item) for item in ("model", "train")]
    place = sorted((path / "data").rglob("*"))
    return [np.asarray(a) for a in jax.tree.leaves(found)] + [
        np.frombuffer(p.read_bytes(), np.uint8) for p in place if p.is_file() and p.suffix != ".txt"
    ]


def metrics(run: Path) -> list[dict[str, Any]]:
    """metrics.jsonl without what the clock decides, and without the line that each start writes about itself."""
    kept = ("step", "kind", "loss", "grad_norm", "param_norm", "learning_rate", "attn_logit_max", "bits_per_byte")
    rows = [row for row in read_rows(run / "metrics.jsonl") if row["kind"] != "startup"]
    return [{name: row[name] for name in kept if name in row} for row in rows]


def training(place: Place, count: int, few: int) -> Iterator[Outcome]:
    """Kills anywhere in a run's life; then `few` inside a save, and `few` in the start of a resumption."""
    undisturbed, whole = reference(place)
    parts = (("training, at any moment", count, 0.6), ("an asynchronous save", few, 0.8), ("a resumption", few, 1.0))
    for fault, number, share in parts:
        if number == 0:
            continue
        phases: Counter[str] = Counter()
        run, ends, kills, steps = place.folder / fault.replace(" ", "_").replace(",", ""), 0, 0, []
        while place.goes_on(kills, number, share):
            moment, left, began = moment_of(fault, run, whole, place.rng), being_written(run), time.monotonic()
            was_killed, said = killed(place.command(run), place.cache, moment)
            kills += was_killed
            if was_killed:
                phases[
                    "while saving"
                    if being_written(run) - left
                    else "in a step"
                    if "step " in said
                    else "before the first step"
                ] += 1
            before, steps = steps, check_between(run, steps)
            if not was_killed:
                if not before:  # the machine is less busy, or the programs were not compiled when it was measured
                    whole = min(whole, time.monotonic() - began)
                check_end(run, undisturbed)
                shutil.rmtree(run)
                ends, steps = ends + 1, []
        call(*place.command(run), cache=place.cache)
        check_end(run, undisturbed)
        detail = ", ".join(f"{n} {phase}" for phase, n in phases.most_common())
        yield Outcome(
            f"kill -9 in {fault}",
            kills,
            kills,
            f"{detail}; {ends + 1} runs came to their end bit-equal to undisturbed{unless(kills, number)}",
        )


def unless(made: int, planned: int) -> str:
    """What the table says where the time was over before all attempts were made."""
    return f" (time for {made} of {planned})" if made < planned else ""


def moment_of(fault: str, run: Path, whole: float, rng: random.Random) -> Callable[[subprocess.Popen], None]:
    """When to kill: anywhere in the life of a run that takes `whole` seconds, inside a save, or at its start."""
    if fault == "an asynchronous save":
        return in_a_save(run, rng.uniform(0, 0.03))
    return after(whole * (rng.uniform(0.05, 1.1) if fault == "training, at any moment" else rng.uniform(0.02, 0.6)))


def preparation(place: Place, count: int, n_stories: int = 20_000) -> Iterator[Outcome]:
    """Kills while the tokenizer is trained and the tokens are written."""
    stories = write_stories(place.folder / "many.txt", n_stories)
    command = train_flags(stories, place.folder / "prepared", **{"train.steps": 1, "data.valid_fraction": 0.01})
    began = time.monotonic()
    call(*command, cache=place.new_cache("whole"))
    whole, kills = time.monotonic() - began, 0
    cache = place.new_cache("killed")
    while place.goes_on(kills, count):
        shutil.rmtree(place.folder / "prepared", ignore_errors=True)
        shutil.rmtree(cache / "tokens", ignore_errors=True)
        was_killed, _ = killed(command, cache, after(place.rng.uniform(0.2, 0.9) * whole))
        kills += was_killed
    shutil.rmtree(place.folder / "prepared", ignore_errors=True)
    call(*command, cache=cache)
    one, two = (
        {name: digest for name, digest in listing(folder).items() if name.endswith((".tokens", ".model"))}
        for folder in (place.folder / "whole", cache)
    )
    assert one == two and one, "the prepared tokens differ from undisturbed ones"
    left = [str(p.relative_to(cache)) for p in cache.rglob("*") if TEMPORARY.search(p.name)]
    assert left == [], f"left behind: {left}"
    detail = f"tokens and tokenizer equal to undisturbed ones{unless(kills, count)}"
    yield Outcome("kill -9 in data preparation", kills, kills, detail)


def sampling(place: Place, count: int) -> Iterator[Outcome]:
    """Kills while a run is being sampled: the folder stays as it was and the stories the same."""
    run = place.folder / "sampled"
    call(*train_flags(place.stories, run), cache=place.cache)
    command = ["--mode=sample", f"--workdir={run}", "--prompt=once", "--num_samples=2"]
    said, before = call(*command, cache=place.cache), listing(run)
    began = time.monotonic()
    call(*command, cache=place.cache)
    whole, kills = time.monotonic() - began, 0
    while place.goes_on(kills, count):
        was_killed, _ = killed(command, place.cache, after(place.rng.uniform(0.05, 1.0) * whole))
        kills += was_killed
        assert listing(run) == before
    assert call(*command, cache=place.cache) == said
    detail = f"run folder untouched, the same stories after{unless(kills, count)}"
    yield Outcome("kill -9 in sampling", kills, kills, detail)


def judging(place: Place, count: int) -> Iterator[Outcome]:
    """The judge's own kill test, with so many kills."""
    from test_judge_faults import test_kill_9_at_any_point_loses_nothing_and_repeats_nothing as kill_test

    folder = place.folder / "judged"
    folder.mkdir()
    prompts = 230 if count > 5 else 40
    kill_test(folder, count, prompts)
    yield Outcome("kill -9 in judging", count, count, f"{4 * prompts:,}+ judgements accounted for, none twice")


def studies(place: Place, count: int) -> Iterator[Outcome]:
    """Kills anywhere in a study of four runs, from its first run to its report, which ends as an undisturbed one."""
    command = ["--mode=study", f"--config={REPOSITORY / 'tests' / 'study_killed.py'}", "--workdir=study"]
    whole = place.folder / "whole"
    whole.mkdir()
    began = time.monotonic()
    call(*command, cache=place.cache, cwd=whole)
    seconds, kills, ends = time.monotonic() - began, 0, 0
    folder = place.folder / "killed"
    while True:
        folder.mkdir(exist_ok=True)
        moment = after(place.rng.uniform(0.05, 0.7) * seconds if place.goes_on(kills, count) else 1200)
        was_killed, _ = killed(command, place.cache, moment, cwd=folder)
        kills += was_killed
        if was_killed:
            continue
        for name in ("report.md", "results.csv"):  # but for the report's last section: how long it took
            ended, expected = ((where / "study" / name).read_text().partition(TIME)[0] for where in (folder, whole))
            assert ended == expected, name
        left = [str(p) for p in (folder / "study").rglob("*") if TEMPORARY.search(p.name)]
        assert left == [], f"left behind: {left}"
        shutil.rmtree(folder)
        ends += 1
        if not place.goes_on(kills, count):
            break
    detail = f"{ends} studies ended with the report of an undisturbed one{unless(kills, count)}"
    yield Outcome("kill -9 in a study", kills, kills, detail)
