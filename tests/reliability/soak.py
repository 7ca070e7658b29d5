"""Small training for hours with evaluation, save and sampling every 50 steps: does anything grow?

    PYTHONPATH=.:tests python tests/reliability/soak.py --minutes 120 --out soak

Writes soak.jsonl (a line every 10 s: memory, descriptors, threads, steps) and soak.png, prints the slopes and what
the last third has more than the second; ends with 1 where that is too much. The first third is not counted: programs
are still being compiled, and pools filled. `--report soak.jsonl` judges an earlier one again.
"""

import argparse
import itertools
import json
import os
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
from run_tools import small_config, write_stories

from mla_jax.sample.sampler import Sampler
from mla_jax.train import loop

EVERY = 50
# The last third over the second. Pools of threads, and the pipes between them, come and go. Memory is counted by save:
# TensorStore 0.1.86 leaks the strings of every JSON object that it gives to Python (docs/reliability.md).
# A step's time is judged in CPU seconds of this process: by the clock it has the machine's other work in it.
LIMITS = {"descriptors": 0.15, "threads": 0.15, "step_cpu_ms": 0.05}
KIB_PER_SAVE = 250


def reading(began: float, step: int) -> dict[str, Any]:
    """What this process holds now (Linux: /proc)."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return {
        "t": time.monotonic() - began,
        "cpu": time.process_time(),
        "rss_mib": pages * os.sysconf("SC_PAGE_SIZE") / 2**20,
        "descriptors": len(os.listdir("/proc/self/fd")),
        "threads": len(os.listdir("/proc/self/task")),
        "step": step,
    }


class Watch:
    """Counts steps and samples after each save, by standing between the loop and its methods."""

    def __init__(self) -> None:
        self.step, self.samples = 0, 0
        self._advance, self._save = loop._Training._advance, loop._Training._save

    def __enter__(self) -> "Watch":
        watch = self

        def advance(training: Any, done: int) -> int:
            watch.step = done
            return watch._advance(training, done)

        def save(training: Any, done: int) -> None:
            watch._save(training, done)
            setup = training.setup
            sampler = Sampler(setup.model, training.state.variables, setup.prepared.tokenizer, setup.config)
            sampler.generate(["once upon", ""], max_new_tokens=8, seed=done)
            watch.samples += 1

        loop._Training._advance, loop._Training._save = advance, save
        return self

    def __exit__(self, *error: Any) -> None:
        loop._Training._advance, loop._Training._save = self._advance, self._save


def step_times(rows: list[dict[str, Any]], clock: str) -> list[tuple[float, float]]:
    """(time, milliseconds a step by `clock`) between neighbouring readings; evaluation, saves, samples included."""
    return [
        ((a["t"] + b["t"]) / 2, 1000 * (b[clock] - a[clock]) / (b["step"] - a["step"]))
        for a, b in itertools.pairwise(rows)
        if b["step"] > a["step"]
    ]


def series(rows: list[dict[str, Any]]) -> dict[str, list[tuple[float, float]]]:
    """{quantity: [(time, value)]}."""
    names = ("rss_mib", "descriptors", "threads")
    held = {name: [(row["t"], row[name]) for row in rows] for name in names}
    return held | {"step_ms": step_times(rows, "t"), "step_cpu_ms": step_times(rows, "cpu")}


def judge(rows: list[dict[str, Any]]) -> tuple[dict[str, tuple[float, float]], list[str]]:
    """({quantity: (slope an hour by least squares over the last two thirds, its standard error)}, what is too much).

    Neighbouring readings hang together: the errors are lower bounds.
    """
    found, steep, whole = {}, [], rows[-1]["t"]
    for name, points in series(rows).items():
        second = [p for p in points if whole / 3 <= p[0] < 2 * whole / 3]
        last = [p for p in points if p[0] >= 2 * whole / 3]
        slope, error, mean = fit(second + last)
        found[name] = (slope, error)
        more = float(np.mean([y for _, y in last]) / np.mean([y for _, y in second]) - 1)
        print(f"{name}: mean {mean:.1f}, slope an hour {slope:+.2f} ± {error:.2f}, last third {100 * more:+.1f} %")
        if more > LIMITS.get(name, 1.0):
            steep.append(name)
    kept = [row for row in rows if row["t"] >= whole / 3]
    saves = (kept[-1]["step"] - kept[0]["step"]) / EVERY
    leak = 1024 * (kept[-1]["rss_mib"] - kept[0]["rss_mib"]) / saves
    print(f"memory: {leak:.0f} KiB more with each save, its evaluation and its samples")
    return found, steep + (["memory"] if leak > KIB_PER_SAVE else [])


def fit(points: list[tuple[float, float]]) -> tuple[float, float, float]:
    x, y = np.asarray(points, float).T
    x = x / 3600
    slope, level = np.polyfit(x, y, 1)
    spread = np.sqrt(np.sum((y - slope * x - level) ** 2) / max(len(x) - 2, 1))
    return float(slope), float(spread / np.sqrt(np.sum((x - x.mean()) ** 2))), float(y.mean())


def figure(rows: list[dict[str, Any]], found: dict[str, tuple[float, float]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    drawn, axes = plt.subplots(5, 1, figsize=(7, 10), sharex=True)
    for axis, (name, points) in zip(axes, series(rows).items(), strict=True):
        slope, error = found[name]
        axis.plot([t / 60 for t, _ in points], [y for _, y in points], lw=1)
        axis.set_ylabel(name)
        axis.set_ylim(bottom=0)
        axis.set_title(f"{slope:+.1f} ± {error:.1f} an hour, from the second third on", fontsize=9)
    axes[-1].set_xlabel("minutes")
    drawn.tight_layout()
    drawn.savefig(path, dpi=80)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=120)
    parser.add_argument("--out", type=Path, default=Path("soak"), help="where .jsonl and .png are written")
    parser.add_argument("--report", type=Path, help="a .jsonl of before: judged and drawn, nothing is trained")
    arguments = parser.parse_args()
    if arguments.report:
        return report([json.loads(line) for line in arguments.report.read_text().splitlines()], arguments.out)
    rows: list[dict[str, Any]] = []
    ended = threading.Event()
    with tempfile.TemporaryDirectory(prefix="mla_jax-soak-") as folder, Watch() as watch:
        os.environ["MLA_JAX_CACHE"] = f"{folder}/cache"
        knobs = {"train.steps": 10**9, "train.eval_every": EVERY, "checkpoint.every": EVERY, "train.log_every": 10}
        config = small_config(write_stories(Path(folder) / "stories.txt"), **knobs)
        began = time.monotonic()

        def observe() -> None:
            with arguments.out.with_suffix(".jsonl").open("w", encoding="utf-8") as out:
                while not ended.wait(10):
                    rows.append(reading(began, watch.step))
                    out.write(json.dumps(rows[-1]) + "\n")
                    out.flush()

        observer = threading.Thread(target=observe)
        observer.start()
        try:
            loop.train(config, Path(folder) / "run", deadline=began + 60 * arguments.minutes)
        finally:
            ended.set()
            observer.join()
    return report(rows, arguments.out)


def report(rows: list[dict[str, Any]], out: Path) -> int:
    steps = rows[-1]["step"]
    print(f"{steps:,} steps, {steps // EVERY:,} saves with samples, {rows[-1]['t'] / 60:.0f} minutes")
    found, steep = judge(rows)
    figure(rows, found, out.with_suffix(".png"))
    if steep:
        print(f"grows too fast: {', '.join(steep)}", file=sys.stderr)
    return 1 if steep else 0


if __name__ == "__main__":
    sys.exit(main())
