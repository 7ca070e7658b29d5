"""Small training for hours with evaluation, save and sampling every 50 steps: does anything grow?

    PYTHONPATH=.:tests python tests/reliability/soak.py --minutes 120 --out soak

Writes soak.jsonl (a line every 10 s: memory, descriptors, threads, steps) and soak.png, prints the slopes and ends
with 1 where one is too steep. The first tenth, at least a minute, is not counted: programs are still being compiled.
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
# What may grow in an hour, whatever the noise: of memory the allocator's fragments, of step time 5 %.
LIMITS = {"rss_mib": 30.0, "descriptors": 1.0, "threads": 1.0, "step_ms": 0.05}


def reading(began: float, step: int) -> dict[str, Any]:
    """What this process holds now (Linux: /proc)."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return {
        "t": time.monotonic() - began,
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


def slopes(rows: list[dict[str, Any]]) -> dict[str, tuple[float, float, float]]:
    """{quantity: (slope an hour by least squares, its standard error, mean)} after the first tenth.

    The slope of step_ms is relative to its mean. Neighbouring readings hang together, so the error is a lower bound.
    """
    whole = rows[-1]["t"]
    kept = [row for row in rows if row["t"] >= max(60.0, whole / 10)]
    found = {}
    for name in ("rss_mib", "descriptors", "threads"):
        found[name] = fit([(row["t"], row[name]) for row in kept])
    steps = [
        ((a["t"] + b["t"]) / 2, 1000 * (b["t"] - a["t"]) / (b["step"] - a["step"]))
        for a, b in itertools.pairwise(kept)
        if b["step"] > a["step"]
    ]
    slope, error, mean = fit(steps)
    return found | {"step_ms": (slope / mean, error / mean, mean)}


def fit(points: list[tuple[float, float]]) -> tuple[float, float, float]:
    x, y = np.asarray(points, float).T
    x = x / 3600
    slope, level = np.polyfit(x, y, 1)
    spread = np.sqrt(np.sum((y - slope * x - level) ** 2) / max(len(x) - 2, 1))
    return float(slope), float(spread / np.sqrt(np.sum((x - x.mean()) ** 2))), float(y.mean())


def figure(rows: list[dict[str, Any]], found: dict[str, tuple[float, float, float]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    drawn, axes = plt.subplots(4, 1, figsize=(7, 8), sharex=True)
    for axis, (name, (slope, error, _)) in zip(axes, found.items(), strict=True):
        if name == "step_ms":
            pairs = [(a, b) for a, b in itertools.pairwise(rows) if b["step"] > a["step"]]
            x, y = [b["t"] for _, b in pairs], [1000 * (b["t"] - a["t"]) / (b["step"] - a["step"]) for a, b in pairs]
            label = f"{100 * slope:+.1f} ± {100 * error:.1f} % an hour"
        else:
            x, y, label = [r["t"] for r in rows], [r[name] for r in rows], f"{slope:+.2f} ± {error:.2f} an hour"
        axis.plot([t / 60 for t in x], y, lw=1)
        axis.set_ylabel(name)
        axis.set_title(label, fontsize=9)
    axes[-1].set_xlabel("minutes")
    drawn.tight_layout()
    drawn.savefig(path, dpi=80)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=120)
    parser.add_argument("--out", type=Path, default=Path("soak"), help="where .jsonl and .png are written")
    arguments = parser.parse_args()
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
    found = slopes(rows)
    figure(rows, found, arguments.out.with_suffix(".png"))
    print(f"{rows[-1]['step']:,} steps, {watch.samples:,} saves with samples, {rows[-1]['t'] / 60:.0f} minutes")
    for name, (slope, error, mean) in found.items():
        print(f"{name}: mean {mean:.1f}, slope an hour {slope:+.3f} ± {error:.3f} (limit {LIMITS[name]})")
    steep = [name for name, (slope, error, _) in found.items() if slope - 2 * error > LIMITS[name]]
    if steep:
        print(f"too steep: {', '.join(steep)}", file=sys.stderr)
    return 1 if steep else 0


if __name__ == "__main__":
    sys.exit(main())
