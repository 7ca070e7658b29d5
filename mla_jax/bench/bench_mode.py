"""`--mode bench`: run the jobs of the chosen suites in order of worth; every row is on disk before the next starts."""

import dataclasses
import itertools
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import rich.console

from mla_jax import config as config_lib
from mla_jax import devices, runs
from mla_jax.bench import decode, device, plan, points, report, synthetic
from mla_jax.bench.settings import QUICK, QUICK_CAVEAT, QUICK_MODEL
from mla_jax.config import Config
from mla_jax.config_files import load_config
from mla_jax.errors import UserError, brief, out_of_memory
from mla_jax.rows import append_row, read_rows, result_row
from mla_jax.terminal import say

ROWS = "rows.jsonl"


@dataclasses.dataclass(frozen=True)
class Choice:
    """A part of what there is to measure. names: of points; () = all. label: part of a job's label; "plain" = the jobs
    without one; None = all."""

    names: Sequence[str] = ()
    label: str | None = None

    def of_points(self, found: list[points.Point]) -> list[points.Point]:
        """Raises UserError for a name that no point has."""
        there = [point.name for point in found]
        for name in self.names:
            if name not in there:
                raise UserError(f"--point is {name!r}, which is none of {', '.join(there)}: use one of them.")
        return [point for point in found if not self.names or point.name in self.names]

    def of_jobs(self, jobs: list[plan.Job]) -> list[plan.Job]:
        """Raises UserError when nothing is left."""
        wanted = self.label
        found = [j for j in jobs if wanted is None or (not j.label if wanted == "plain" else wanted in j.label)]
        if not found:
            labels = ", ".join(dict.fromkeys(job.label or "plain" for job in jobs))
            raise UserError(f"--only is {self.label!r}, which is in none of the labels {labels}: use a part of one.")
        return found


def run(
    suites: Sequence[str],
    config: Config | None,
    workdirs: Sequence[str],
    given: dict[str, Any],
    quick: bool,
    out: str | None,
    choice: Choice,
    console: rich.console.Console,
) -> list[dict[str, Any]]:
    """Measure and return the rows of this run.

    config: a named config to measure with random weights, workdirs: run folders; with neither, the built-in grid.
    given: fields of `config.bench`. quick: tiny shapes and models. out: folder of rows.jsonl, report.md and plots;
    rows are added to what is there. choice: a part of that only. Measurements that OUT has already are not made again.
    Raises UserError for bad settings before anything is written.
    """
    if out is None:
        raise UserError("--out is missing: give a folder for rows.jsonl, report.md and the plots.")
    settings_config = config_lib.replace(
        config or load_config("base"), **((QUICK if quick else {}) | {f"bench.{k}": v for k, v in given.items()})
    )
    settings = settings_config.bench
    chosen = choice.of_points(_points(config, workdirs, settings, quick))
    jobs = choice.of_jobs(_jobs(suites, chosen, settings))
    folder = _folder(out)
    jobs = _not_done(jobs, read_rows(folder / ROWS))
    began = time.monotonic()
    bandwidth = device.copy_bandwidth(settings.copy_bytes, settings.repeats)
    copies = f"copies {bandwidth / 1e9:,.1f} GB/s (read + write)"
    say(console, f"device    {devices.device_name()}; {copies}; {len(jobs)} to measure")
    if quick:
        say(console, f"quick     {QUICK_CAVEAT}")
    rows = []
    for number, job in enumerate(jobs, 1):
        minutes = (time.monotonic() - began) / 60
        if settings.max_minutes and minutes >= settings.max_minutes:
            say(console, f"stopped   --max_minutes {settings.max_minutes:g}: {len(jobs) - number + 1} not run")
            break
        if job.suite != "decode":
            decode.forget_variables()
        row = _row(job, bandwidth, quick)
        append_row(folder / ROWS, row)
        rows.append(row)
        say(console, f"{number:>4}/{len(jobs)} {_line(row['metrics'])}")
    decode.forget_variables()
    everything = read_rows(folder / ROWS)
    say(console, f"wrote     {report.write(everything, folder)}")
    return rows


def _points(config: Config | None, workdirs: Sequence[str], settings: Any, quick: bool) -> list[points.Point]:
    if config is not None and workdirs:
        raise UserError("--config and --workdir are both given: measure a named config or run folders, not both.")
    vocab = synthetic.vocabulary(settings.vocab_size)
    if workdirs:
        found = []
        for workdir in workdirs:
            folder = runs.existing(workdir)
            found.append(points.Point(folder.name, runs.read_config(folder), workdir))
        return found
    if config is not None:
        sized = config if config.model.vocab_size else config_lib.replace(config, **vocab)
        return [points.Point("config", sized)]
    found = points.grid(settings.size, vocab | (QUICK_MODEL if quick else {}))
    return [point for point in found if point.name in points.PAIR] if quick else found


def _jobs(suites: Sequence[str], chosen: list[points.Point], settings: Any) -> list[plan.Job]:
    """Jobs of all suites: each suite's first third goes before the rest, so that no suite waits for another's tail."""
    for suite in suites:
        if suite not in plan.SUITES:
            raise UserError(f"--suite is {suite!r}; it must be one of {', '.join(plan.SUITES)}: name such a one.")
    lists = [plan.SUITES[suite](chosen, settings) for suite in suites]
    heads = [jobs[: max(8, len(jobs) // 3)] for jobs in lists]
    tails = [jobs[max(8, len(jobs) // 3) :] for jobs in lists]
    return list(itertools.chain(*heads, *tails))


def _not_done(jobs: list[plan.Job], rows: list[dict[str, Any]]) -> list[plan.Job]:
    """Jobs that have no row of this config, device and XLA flags yet; what failed is tried again."""
    here = devices.device_name(), os.environ.get("XLA_FLAGS", "")
    done = {
        (report.key(row), row["config_hash"])
        for row in rows
        if (row["device"], row["metrics"]["xla_flags"]) == here and "failed" not in row["metrics"]
    }
    keys = [((j.suite, j.point.name, j.label, j.batch, j.context), j.point.config.hash) for j in jobs]
    return [job for job, key in zip(jobs, keys, strict=True) if key not in done]


def _folder(out: str) -> Path:
    folder = Path(out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ROWS).touch()
        if (text := (folder / ROWS).read_bytes()) and not text.endswith(b"\n"):
            (folder / ROWS).write_bytes(text + b"\n")  # a cut row must not take the next one along
    except OSError as error:
        raise UserError(f"--out is {out!r}, which cannot be written to ({error.strerror}): choose another.") from None
    return folder


def _row(job: plan.Job, bandwidth: float, quick: bool) -> dict[str, Any]:
    """Run a job; what fails, or does not fit, is a row that says so, as does one of a quick benchmark."""
    metrics: dict[str, Any] = {"suite": job.suite, "point": job.point.name, "label": job.label}
    metrics["model"] = job.point.size
    metrics |= {"batch": job.batch, "context": job.context, "copy_bytes_per_s": bandwidth}
    metrics["xla_flags"] = os.environ.get("XLA_FLAGS", "")
    metrics |= {"quick": True} if quick else {}
    limit = device.memory_limit()
    if limit and job.needs > 0.95 * limit:
        metrics["skipped"] = f"needs about {job.needs / 2**30:.0f} GiB of {limit / 2**30:.0f}"
    else:
        try:
            metrics |= job.run()
        except UserError as error:
            metrics["skipped"] = str(error)
        except Exception as error:  # a row of a grid must not take the others with it
            reason = "out of memory" if out_of_memory(error) is not None else type(error).__name__
            metrics["failed"] = f"{reason}: {brief(error)}"
    if metrics.get("bytes_per_s"):
        metrics["of_copy"] = metrics["bytes_per_s"] / bandwidth
    if device.peak_memory() and "peak_bytes" not in metrics:
        metrics["process_peak_bytes"] = device.peak_memory()
    metrics |= _of_run(job.point)
    return result_row(job.point.name, job.point.config.hash, metrics, *_identity(job.point))


def _of_run(point: points.Point) -> dict[str, Any]:
    """The best validation loss of a run folder's point."""
    if not point.run:
        return {}
    losses = runs.checkpoint_losses(runs.RunFolder(Path(point.run)))
    return {"valid_loss": min(losses.values())} if losses else {}


def _identity(point: points.Point) -> tuple[str, str]:
    """data_fingerprint and tokenizer_sha256; empty with random weights."""
    if not point.run:
        return "", ""
    data = runs.read_data(runs.RunFolder(Path(point.run)))
    return data["fingerprint"], data["tokenizer_sha256"]


def _line(m: dict[str, Any]) -> str:
    label = f" ({m['label']})" if m["label"] else ""
    shape = f"{m['batch']} x {m['context']}" if m["batch"] else f"{m['context']} positions"
    text = f"{m['suite']:<8}{m['point']}{label}, {shape}: "
    if m.get("skipped") or m.get("failed"):
        return text + (m.get("skipped") or m["failed"])
    if "correct" in m:
        return text + f"{'correct' if m['correct'] else 'WRONG'}, relative error {m['relative_error']:.1e}"
    parts = [f"{m['ms']:.4g} ms"] if "ms" in m else []
    parts += [f"{m['tokens_per_s']:,.0f} tokens/s"] if m.get("tokens_per_s") else []
    parts += [f"{m['of_copy']:.1%} of copy bandwidth"] if m.get("of_copy") else []
    if "largest_batch" in m:
        tried = f"{m['ran_batch']:,} rows ran" if m["ran_batch"] is not None else f"none was tried: {m['note']}"
        parts.append(f"{m['largest_batch']:,} rows in closed form, {tried}")
    return text + ", ".join(parts)
