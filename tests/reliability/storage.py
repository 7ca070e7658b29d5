"""Damaged, full, read-only and shared storage: a sentence, or the right answer; never a wrong one."""

import os
import random
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import numpy as np
from kills import LONG, Place
from outcome import Outcome
from run_tools import call, listing, start, train_flags

from mla_jax.errors import UserError
from mla_jax.runs import RunFolder, load_run
from mla_jax.sample.sampler import Sampler

Damage = Callable[[Path, random.Random], None]


def flip(path: Path, rng: random.Random) -> None:
    content = bytearray(path.read_bytes())
    if content:
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    path.write_bytes(content)


DAMAGES: dict[str, Damage] = {
    "a bit flipped": flip,
    "cut in half": lambda path, rng: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "emptied": lambda path, rng: path.write_bytes(b""),
    "deleted": lambda path, rng: path.unlink(),
}


def damaged_files(place: Place, every: int) -> Iterator[Outcome]:
    """Each `every`-th file of a run folder, damaged in each way, then loaded and sampled."""
    run = place.folder / "run"
    call(*train_flags(place.stories, run), cache=place.cache)
    good = load_run(run)
    leaves, story = [np.asarray(a) for a in jax.tree.leaves(good.params)], write_story(good)
    files = [p.relative_to(run) for p in sorted(run.rglob("*")) if p.is_file() and p.name != ".lock"][::every]
    copy = place.folder / "copy"
    for name, damage in DAMAGES.items():
        seen: Counter[str] = Counter()
        for file in files:
            shutil.rmtree(copy, ignore_errors=True)
            shutil.copytree(run, copy)
            damage(copy / file, place.rng)
            try:
                loaded = load_run(copy)
                same = all(
                    np.array_equal(a, np.asarray(b))
                    for a, b in zip(leaves, jax.tree.leaves(loaded.params), strict=True)
                )
                assert (same and write_story(loaded) == story) or loaded.step != good.step, f"{file}: wrong weights"
                seen["no matter to the sampler" if same else "another checkpoint taken"] += 1
            except UserError:
                seen["refused in a sentence"] += 1
        yield Outcome(
            f"each file of a run folder {name}, then sampled",
            len(files),
            len(files),
            ", ".join(f"{number} {what}" for what, number in seen.most_common()),
        )


def write_story(run: object) -> list[str]:
    return Sampler.from_run(run).generate(["once"], max_new_tokens=8, temperature=0.0)


def resumed_after_damage(place: Place, count: int) -> Iterator[Outcome]:
    """The newest checkpoint damaged anywhere: training goes on from the one before and ends as it should."""
    run, copy = place.folder / "run", place.folder / "resumed"
    newest = max(RunFolder(run).steps())
    files = [p.relative_to(run) for p in (run / "checkpoints" / str(newest)).glob("*/**/*") if p.is_file()]
    for _ in range(count):
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(run, copy)
        (copy / "result.json").unlink()
        DAMAGES[place.rng.choice(list(DAMAGES))](copy / place.rng.choice(files), place.rng)
        said = call(*train_flags(place.stories, copy), cache=place.cache)
        assert f"{newest} cannot be restored" in said and "resuming at step" in said, said
        assert RunFolder(copy).steps()[-1] == newest
        assert (copy / "samples.txt").read_bytes() == (run / "samples.txt").read_bytes()
    yield Outcome(
        "a file of the newest checkpoint damaged, then resumed",
        count,
        count,
        "named, moved aside, the one before taken; the same samples at the end",
    )


def full_disk(place: Place, sizes_mb: tuple[int, ...]) -> Iterator[Outcome]:
    """Run folder or cache on a tmpfs that is too small. Needs the right to mount; says so where there is none."""
    if os.geteuid() != 0 or not shutil.which("mount"):
        yield Outcome("a full disk", 0, 0, "not tried: mounting a small tmpfs needs root")
        return
    mount, tried = place.folder / "small", 0
    mount.mkdir()
    for size in sizes_mb:
        for what in ("run folder", "cache"):
            done = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}m", "tmpfs", str(mount)], check=False)
            if done.returncode:
                yield Outcome("a full disk", 0, 0, "not tried: mounting a small tmpfs is forbidden here")
                return
            try:
                run = (mount if what == "run folder" else place.folder) / "full_run"
                cache = mount / "cache" if what == "cache" else place.cache
                process = start(*train_flags(place.stories, run), cache=cache)
                out, err = process.communicate(timeout=240)
                last = (err.strip().splitlines() or [""])[-1]
                assert process.returncode in (0, 2), f"{size} MB, {what}: exit {process.returncode}\n{out}\n{err}"
                assert process.returncode == 0 or ("Traceback" not in err and "disk" in last), err
                tried += 1
            finally:
                subprocess.run(["umount", str(mount)], check=True)
                shutil.rmtree(place.folder / "full_run", ignore_errors=True)
    yield Outcome("a full disk", tried, tried, f"tmpfs of {', '.join(map(str, sizes_mb))} MB: done, or a sentence")


def two_in_one_folder(place: Place) -> Iterator[Outcome]:
    """The second process is refused while the first trains, and nothing of the first is touched."""
    run = place.folder / "shared"
    first = start(*train_flags(place.stories, run, **LONG | {"train.steps": 2000}), cache=place.cache)
    try:
        while not RunFolder(run).steps():
            assert first.poll() is None, first.communicate()
        said = call(*train_flags(place.stories, run, **LONG | {"train.steps": 2000}), cache=place.cache, code=2)
        assert "another process is training" in said
        assert first.poll() is None
    finally:
        first.kill()
        first.communicate()
    call(*train_flags(place.stories, run, **LONG), cache=place.cache)
    yield Outcome("two processes on one run folder", 1, 1, "the second exits with 2; the lock dies with its process")


def read_only(place: Place) -> Iterator[Outcome]:
    """A read-only run folder can be sampled and evaluated; training in it is refused."""
    if os.geteuid() == 0:
        yield Outcome("a read-only folder", 0, 0, "not tried: root writes everywhere")
        return
    run = place.folder / "read_only"
    shutil.copytree(place.folder / "run", run)
    for path in [run, *run.rglob("*")]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    before = listing(run)
    call("--mode=sample", f"--workdir={run}", "--prompt=once", "--num_samples=1", cache=place.cache)
    said = call(*train_flags(place.stories, run, **{"train.steps": 20}), cache=place.cache, code=2)
    assert "cannot be written to" in said and listing(run) == before
    yield Outcome("a read-only folder", 2, 2, "sampled; training in it refused; nothing changed")
