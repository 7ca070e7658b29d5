"""Preparing a large corpus, measured: memory and speed against sentencepiece's own, as a Markdown table.

    python launch/prepare_bench.py --stories train.txt --gigabytes 2 --folder /tmp/prepare_bench

Makes a file of that size by repeating the stories of --stories (text, <|endoftext|> lines) with a number in each, then
times, in processes of their own: sentencepiece's `encode(list, num_threads=CPUS)` on the first part of the file, the
whole preparation from an empty cache (with JAX started, as in training), a second preparation, and sentencepiece again
(the machine's load may have changed). Memory is that of the process and its children, looked at 10 times a second.
Everything it made is deleted at the end.
"""

import argparse
import json
import os
import shutil
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
path, cache, vocab_size = sys.argv[1:]
config = load_config("base", **{"data.path": path, "data.cache_dir": cache, "tokenizer.vocab_size": int(vocab_size)})
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
path, model, limit = sys.argv[1:]
processor = sentencepiece.SentencePieceProcessor(model_file=model)
size = seconds = cpu = 0
with open(path, encoding="utf-8") as file:
    while size < int(limit) and (block := file.read(8_000_000)):
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
        while not self._done.wait(0.1):
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


def rows(size: int, baselines: list[dict], first: dict, second: dict) -> list[tuple[str, str]]:
    """(what, value) for the table."""
    read, spent = sum(b["bytes"] for b in baselines), sum(b["seconds"] for b in baselines)
    base, base_cpu = read / spent, read / sum(b["cpu"] for b in baselines)
    phases, train = first["stats"]["phases"], first["stats"]["train"]
    both = ", ".join(f"{b['bytes'] / b['seconds'] / 1e6:.2f}" for b in baselines)
    return [
        ("file", f"{size:,} bytes, {train['stories'] + first['stats']['valid']['stories']:,} stories"),
        (
            "tokens",
            f"{train['tokens'] + first['stats']['valid']['tokens']:,} ({first['stats']['vocab_size']:,} pieces)",
        ),
        (f"sentencepiece, encode(list, num_threads={baselines[0]['threads']})", f"{base / 1e6:.2f} MB/s ({both})"),
        ("preparation from nothing", f"{first['seconds']:.1f} s, {size / first['seconds'] / 1e6:.2f} MB/s"),
        *((f"  of it {name}", f"{seconds:.1f} s") for name, seconds in phases.items()),
        ("speed against sentencepiece, all of it", f"{size / first['seconds'] / base:.1%}"),
        ("  without learning the pieces", f"{size / (first['seconds'] - phases['learning']) / base:.1%}"),
        ("  the tokenizing pass alone", f"{size / phases['tokenizing'] / base:.1%}"),
        ("  all of it, by CPU seconds", f"{size / first['cpu'] / base_cpu:.1%}"),
        ("peak memory", f"{first['rss'] / 2**20:,.0f} MiB RSS, {first['pss'] / 2**20:,.0f} MiB PSS"),
        ("a second preparation", f"{second['seconds']:.1f} s, {second['rss'] / 2**20:,.0f} MiB RSS"),
        ("cores, load before and after", f"{os.cpu_count()}, {first['load'][0]:.1f}, {first['load'][1]:.1f}"),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--stories", type=Path, required=True, help="text file of stories to repeat")
    parser.add_argument("--gigabytes", type=float, default=2.0, help="10^9 bytes")
    parser.add_argument("--folder", type=Path, required=True, help="a new folder for the file and the cache")
    parser.add_argument("--vocab_size", type=int, default=8192)
    parser.add_argument("--baseline_megabytes", type=float, default=400, help="so much for sentencepiece, twice")
    arguments = parser.parse_args()
    folder, size = arguments.folder, int(arguments.gigabytes * 1e9)
    folder.mkdir(parents=True)
    try:
        path, cache = folder / "stories.txt", folder / "cache"
        make_file(arguments.stories, path, size)
        # The model that sentencepiece is timed with must be the one of the preparation.
        small = folder / "small.txt"
        make_file(arguments.stories, small, 1)
        run(PREPARE, small, folder / "small", arguments.vocab_size)
        (model,) = (folder / "small" / "tokenizers").glob("*/tokenizer.model")
        limit = min(int(arguments.baseline_megabytes * 1e6), size)
        before, load = run(BASELINE, path, model, limit), os.getloadavg()[0]
        begun = time.time()
        first = run(PREPARE, path, cache, arguments.vocab_size)
        first["load"] = (load, os.getloadavg()[0])
        second = run(PREPARE, path, cache, arguments.vocab_size)
        (model,) = (cache / "tokenizers").glob("*/tokenizer.model")
        after = run(BASELINE, path, model, limit)
        print(f"Measured {time.strftime('%Y-%m-%d %H:%M', time.gmtime(begun))} UTC.\n\n| what | value |\n|---|---|")
        for what, value in rows(path.stat().st_size, [before, after], first, second):
            print(f"| {what.replace('  ', '&nbsp;&nbsp;')} | {value} |")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
