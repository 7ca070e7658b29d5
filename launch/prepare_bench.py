"""Preparing a large corpus, measured: memory and speed against sentencepiece's own, as a Markdown table.

    python launch/prepare_bench.py --stories train.txt --gigabytes 2 --folder /tmp/prepare_bench

Makes a file of that size by repeating the stories of --stories (text, <|endoftext|> lines) with a number in each, and
measures, each in a process of its own:

* rounds on parts of it: sentencepiece's `encode(list, num_threads=CPUS)`, then the preparation of the same text with
  the same model from an empty cache. Side by side, for a machine's load changes; the ratio is the rounds' median.
* the whole file from nothing, learning of the pieces included, with JAX started as in training, and a second time.
  Memory is that of the process and its children, looked at 5 times a second.

Everything it made is deleted at the end.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path

SEPARATOR = "<|endoftext|>"
PREPARE = """
import json, os, sys, time
import jax
jax.devices()
from mla_jax.config_files import load_config
from mla_jax.data.prepare import prepare
path, cache, vocab_size, model = sys.argv[1:]
knobs = {"data.path": path, "data.cache_dir": cache, "tokenizer.vocab_size": int(vocab_size), "tokenizer.path": model}
config = load_config("base", **knobs)
begun, before = time.perf_counter(), os.times()
prepared = prepare(config)
after = os.times()
cpu = sum(after[:4]) - sum(before[:4])
print(json.dumps({"seconds": time.perf_counter() - begun, "cpu": cpu, "stats": prepared.stats}))
"""
BASELINE = """
import json, os, sys, time
import sentencepiece
from mla_jax.data.tokenizer import cpus
path, model = sys.argv[1:]
processor = sentencepiece.SentencePieceProcessor(model_file=model)
size = seconds = cpu = 0
with open(path, encoding="utf-8") as file:
    while block := file.read(8_000_000):
        texts = block.split("<|endoftext|>")
        before, begun = os.times(), time.perf_counter()
        processor.encode(texts, num_threads=cpus())
        seconds += time.perf_counter() - begun
        cpu += sum(os.times()[:4]) - sum(before[:4])
        size += len(block.encode())
print(json.dumps({"seconds": seconds, "cpu": cpu, "bytes": size, "threads": cpus()}))
"""


def make_file(source: Path, target: Path, size: int) -> None:
    """At least `size` bytes of `source`'s stories, over and over, each with the number of its round."""
    stories = [story.strip("\n") for story in source.read_text(encoding="utf-8").split(SEPARATOR) if story.strip()]
    written, rounds = 0, 0
    with target.open("wb") as file:
        while written < size:
            rounds += 1
            data = "".join(f"{story} {rounds}\n{SEPARATOR}\n" for story in stories).encode("utf-8")
            written += file.write(data)


class Memory:
    """The peak memory of a process and its descendants, in bytes: RSS and PSS (shared pages divided among users)."""

    def __init__(self, pid: int):
        self._pid, self.rss, self.pss = pid, 0, 0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()

    def stop(self) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._done.wait(0.2):
            total = {"Rss": 0, "Pss": 0}
            for pid in self._tree():
                try:
                    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
                except OSError:
                    continue
                for line in lines:
                    name, value, *_ = line.replace(":", " ").split()
                    if name in total:
                        total[name] += int(value) * 1024
            self.rss, self.pss = max(self.rss, total["Rss"]), max(self.pss, total["Pss"])

    def _tree(self) -> list[int]:
        pids = [self._pid]
        for pid in pids:
            for path in Path(f"/proc/{pid}/task").glob("*/children"):
                try:
                    pids += map(int, path.read_text().split())
                except OSError:
                    continue
        return pids


def run(script: str, *arguments: object) -> dict:
    """What the script printed as JSON, with the peak memory of its process."""
    process = subprocess.Popen([sys.executable, "-c", script, *map(str, arguments)], stdout=subprocess.PIPE, text=True)
    memory = Memory(process.pid)
    out, _ = process.communicate()
    memory.stop()
    if process.returncode:
        raise SystemExit(f"a measured process failed with exit code {process.returncode}")
    return json.loads(out.splitlines()[-1]) | {"rss": memory.rss, "pss": memory.pss}


def time_rounds(stories: Path, folder: Path, model: Path, size: int, count: int) -> list[dict[str, float]]:
    """Bytes a second, by the clock ("clock") and by CPU seconds ("cpu"), of sentencepiece and of the preparation."""
    found = []
    for number in range(count):
        path, cache = folder / f"part{number}.txt", folder / f"cache{number}"
        make_file(stories, path, size)
        n_bytes = path.stat().st_size
        base, ours = run(BASELINE, path, model), run(PREPARE, path, cache, 8192, model)
        row = {"bytes": n_bytes, "clock": n_bytes / base["seconds"], "cpu": n_bytes / base["cpu"]}
        row |= {"our_clock": n_bytes / ours["seconds"], "our_cpu": n_bytes / ours["cpu"], "load": os.getloadavg()[0]}
        print(" ".join(f"{name} {value:,.1f}" for name, value in row.items()), file=sys.stderr, flush=True)
        found.append(row | {"threads": base["threads"]})
        shutil.rmtree(cache)
        path.unlink()
    return found


def round_rows(rounds: list[dict[str, float]]) -> list[tuple[str, str]]:
    """(what, value): the medians of the rounds, and their range."""

    def spread(values: list[float], form: str) -> str:
        ordered = [format(value, form) for value in sorted(values)]
        return f"{format(statistics.median(values), form)} ({ordered[0]} to {ordered[-1]})"

    def megabytes(name: str) -> list[float]:
        return [row[name] / 1e6 for row in rounds]

    clock = [row["our_clock"] / row["clock"] for row in rounds]
    cpu = [row["our_cpu"] / row["cpu"] for row in rounds]
    return [
        ("rounds", f"{len(rounds)} of {rounds[0]['bytes']:,} bytes; median (range)"),
        (
            f"sentencepiece, encode(list, num_threads={rounds[0]['threads']})",
            f"{spread(megabytes('clock'), '.2f')} MB/s",
        ),
        ("preparation, pieces given", f"{spread(megabytes('our_clock'), '.2f')} MB/s"),
        ("its speed against sentencepiece, by the clock", spread(clock, ".1%")),
        ("its speed against sentencepiece, by CPU seconds", spread(cpu, ".1%")),
        ("load (1 minute) after each round", spread([row["load"] for row in rounds], ".1f")),
    ]


def whole_rows(size: int, first: dict, second: dict, load: tuple[float, float]) -> list[tuple[str, str]]:
    """(what, value) of the whole file's preparation."""
    stats = first["stats"]
    train, valid = stats["train"], stats["valid"]
    return [
        ("file", f"{size:,} bytes, {train['stories'] + valid['stories']:,} stories"),
        ("tokens", f"{train['tokens'] + valid['tokens']:,} ({stats['vocab_size']:,} pieces)"),
        ("from nothing", f"{first['seconds']:.1f} s by the clock, {first['cpu']:.1f} CPU seconds"),
        *((f"  of it {name}", f"{seconds:.1f} s") for name, seconds in stats["phases"].items()),
        ("peak memory", f"{first['rss'] / 2**20:,.0f} MiB RSS, {first['pss'] / 2**20:,.0f} MiB PSS"),
        ("a second preparation", f"{second['seconds']:.1f} s, {second['rss'] / 2**20:,.0f} MiB RSS"),
        ("cores; load before and after", f"{os.cpu_count()}; {load[0]:.1f}, {load[1]:.1f}"),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--stories", type=Path, required=True, help="text file of stories to repeat")
    parser.add_argument("--folder", type=Path, required=True, help="a new folder for the file and the cache")
    parser.add_argument("--gigabytes", type=float, default=2.0, help="10^9 bytes; 0 = rounds only")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--round_megabytes", type=float, default=64)
    parser.add_argument("--vocab_size", type=int, default=8192)
    given = parser.parse_args()
    given.folder.mkdir(parents=True)
    table = []
    try:
        # The model that sentencepiece is timed with must be the one of the preparation.
        small = given.folder / "small.txt"
        make_file(given.stories, small, 1)
        run(PREPARE, small, given.folder / "small", given.vocab_size, "")
        (model,) = (given.folder / "small" / "tokenizers").glob("*/tokenizer.model")
        if given.rounds:
            size = int(given.round_megabytes * 1e6)
            table += round_rows(time_rounds(given.stories, given.folder, model, size, given.rounds))
        if given.gigabytes:
            path, cache, before = given.folder / "stories.txt", given.folder / "cache", os.getloadavg()[0]
            make_file(given.stories, path, int(given.gigabytes * 1e9))
            first = run(PREPARE, path, cache, given.vocab_size, "")
            second = run(PREPARE, path, cache, given.vocab_size, "")
            table += whole_rows(path.stat().st_size, first, second, (before, os.getloadavg()[0]))
        print(f"Measured {time.strftime('%Y-%m-%d %H:%M', time.gmtime())} UTC.\n\n| what | value |\n|---|---|")
        for what, value in table:
            print(f"| {what.replace('  ', '&nbsp;&nbsp;')} | {value} |")
    finally:
        shutil.rmtree(given.folder, ignore_errors=True)


if __name__ == "__main__":
    main()
