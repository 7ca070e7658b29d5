"""Damaged, full, read-only and shared storage: a sentence, or the right answer; never a wrong one."""

import contextlib
import importlib.util
import os
import random
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import numpy as np
from kills import LONG, Place, unless
from outcome import Outcome
from run_tools import call, listing, small_config, start, train_flags

from mla_jax import config as config_lib
from mla_jax.data.prepare import prepare
from mla_jax.data.tokenizer import train_tokenizer
from mla_jax.errors import UserError
from mla_jax.interop import hf
from mla_jax.runs import Run, RunFolder, load_run
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


def trained(place: Place) -> Path:
    """A run of seconds, made once for all trials of the group."""
    run = place.folder / "run"
    if not (run / "report.md").exists():
        call(*train_flags(place.stories, run), cache=place.cache)
    return run


def damaged_files(place: Place, every: int) -> Iterator[Outcome]:
    """Each `every`-th file of a run folder, damaged in each way, then loaded and sampled."""
    run = trained(place)
    good = load_run(run)
    expected = leaves_of(good), write_story(good)
    files = [p.relative_to(run) for p in sorted(run.rglob("*")) if p.is_file() and p.name != ".lock"][::every]
    copy = place.folder / "copy"
    for name, damage in DAMAGES.items():
        seen: Counter[str] = Counter()
        for file in files:
            shutil.rmtree(copy, ignore_errors=True)
            shutil.copytree(run, copy)
            damage(copy / file, place.rng)
            seen[read_damaged(copy, str(file), good.step, *expected)] += 1
        yield Outcome(
            f"{'each' if every == 1 else f'each {every}th'} file of a run folder {name}, then sampled",
            len(files),
            len(files),
            ", ".join(f"{number} {what}" for what, number in seen.most_common()),
        )


def leaves_of(run: Run) -> list[np.ndarray]:
    return [np.asarray(a) for a in jax.tree.leaves(run.params)]


def read_damaged(folder: Path, file: str, good_step: int, leaves: list[np.ndarray], story: list[str]) -> str:
    """What reading a run folder with a damaged `file` came to; an AssertionError when that is wrong weights."""
    try:
        run = load_run(folder)
    except UserError:
        return "refused in a sentence"
    same = run.step == good_step and all(np.array_equal(a, b) for a, b in zip(leaves, leaves_of(run), strict=True))
    assert same and write_story(run) == story, f"{file}: wrong weights"
    return "no matter to the sampler"


def write_story(run: Run) -> list[str]:
    return Sampler.from_run(run).generate(["once"], max_new_tokens=8, temperature=0.0)


def resumed_after_damage(place: Place, count: int) -> Iterator[Outcome]:
    """Files of the newest checkpoint damaged: its loss and what stands beside its items first, then any of the others.

    Training goes on from the checkpoint before, or from this one where the file does not matter, and ends as it should.
    """
    run, copy = trained(place), place.folder / "resumed"
    newest = max(RunFolder(run).steps())
    checkpoint = run / "checkpoints" / str(newest)
    inside = sorted(p for p in checkpoint.glob("*/**/*") if p.is_file())
    first = [checkpoint / "metrics" / "metrics", *sorted(p for p in checkpoint.iterdir() if p.is_file())]
    first = first[: count // 2]
    seen: Counter[str] = Counter()
    for path in first + place.rng.sample(inside, count - len(first)):
        if not place.goes_on(seen.total(), count):
            break
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(run, copy)
        (copy / "result.json").unlink()
        DAMAGES[place.rng.choice(list(DAMAGES))](copy / path.relative_to(run), place.rng)
        said = call(*train_flags(place.stories, copy), cache=place.cache)
        moved = (copy / "checkpoints" / f"{newest}.damaged1").exists()
        assert "resuming at step" in said and (f"{newest} cannot be restored" in said) == moved, said
        assert moved or path not in inside, f"{path.relative_to(run)}: not noticed"
        assert RunFolder(copy).steps()[-1] == newest
        assert (copy / "samples.txt").read_bytes() == (run / "samples.txt").read_bytes()
        seen["named, moved aside, the one before taken" if moved else "no matter"] += 1
    detail = ", ".join(f"{number} {what}" for what, number in seen.most_common())
    made = seen.total()
    detail += f"; the same samples at the end{unless(made, count)}"
    yield Outcome("a file of the newest checkpoint damaged, then resumed", made, made, detail)


def full_disk(
    place: Place, sizes_mb: tuple[int, ...], full: tuple[str, ...] = ("run folder", "cache")
) -> Iterator[Outcome]:
    """What is `full` lies on a tmpfs that is too small. Needs the right to mount; says so where there is none."""
    if os.geteuid() != 0 or not shutil.which("mount"):
        yield Outcome("a full disk", 0, 0, "not tried: mounting a small tmpfs needs root")
        return
    mount, tried, planned = place.folder / "small", 0, len(full) * len(sizes_mb)
    mount.mkdir()
    for size in sizes_mb:
        for what in full:
            if not place.goes_on(tried, planned):
                continue
            done = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}m", "tmpfs", str(mount)], check=False)
            if done.returncode:
                yield Outcome("a full disk", 0, 0, "not tried: mounting a small tmpfs is forbidden here")
                return
            try:
                run = (mount if what == "run folder" else place.folder) / "full_run"
                cache = mount / "cache" if what == "cache" else place.cache
                process = start(*train_flags(place.stories, run), cache=cache)
                try:
                    out, err = process.communicate(timeout=600)
                finally:
                    process.kill()
                    process.wait()
                last = (err.strip().splitlines() or [""])[-1]
                assert process.returncode in (0, 2), f"{size} MB, {what}: exit {process.returncode}\n{out}\n{err}"
                assert process.returncode == 0 or ("Traceback" not in err and "disk" in last), err
                tried += 1
            finally:
                subprocess.run(["umount", str(mount)], check=True)
                shutil.rmtree(place.folder / "full_run", ignore_errors=True)
    used = ", ".join(map(str, sizes_mb[: -(-tried // len(full))]))
    detail = f"tmpfs of {used} MB: done, or a sentence{unless(tried, planned)}"
    yield Outcome("a full disk", tried, tried, detail)


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


@contextlib.contextmanager
def mounted_read_only(source: Path, folder: Path) -> Iterator[bool]:
    """A copy of `source` at `folder` that cannot be written to, by root neither; False where that cannot be had."""
    shutil.copytree(source, folder)
    if os.geteuid() != 0:
        for path in [folder, *folder.rglob("*")]:
            path.chmod(0o555 if path.is_dir() else 0o444)
        yield True
        return
    mount = ["mount", "--bind", str(folder), str(folder)]
    if not shutil.which("mount") or subprocess.run(mount, check=False).returncode:
        yield False
        return
    try:
        yield subprocess.run(["mount", "-o", "remount,bind,ro", str(folder)], check=False).returncode == 0
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def read_only(place: Place) -> Iterator[Outcome]:
    """A read-only run folder can be sampled and evaluated; training in it is refused."""
    folder = place.folder / "read_only"
    with mounted_read_only(trained(place), folder) as held:
        if not held:
            yield Outcome("a read-only folder", 0, 0, "not tried: root writes everywhere, and may not mount here")
            return
        before = listing(folder)
        call("--mode=sample", f"--workdir={folder}", "--prompt=once", "--num_samples=1", cache=place.cache)
        said = call(*train_flags(place.stories, folder, **{"train.steps": 20}), cache=place.cache, code=2)
        assert "cannot be written to" in said and "Traceback" not in said, said
        said = call(*train_flags(place.stories, folder / "new"), cache=place.cache, code=2)
        assert "cannot be" in said and "Traceback" not in said, said
        assert listing(folder) == before
    yield Outcome("a read-only folder", 3, 3, "sampled; training in it or below it refused; nothing changed")


def damaged_tokens(place: Place) -> Iterator[Outcome]:
    """Each file of the token cache damaged in each way: noticed, and prepared again to the same bytes."""
    config = config_lib.replace(small_config(place.stories), **{"data.cache_dir": str(place.folder / "tokens")})
    prepare(config)
    good = listing(place.folder / "tokens")
    files = [place.folder / "tokens" / name for name, digest in good.items() if digest != "folder"]
    tried = 0
    for damage in DAMAGES.values():
        for file in files:
            damage(file, place.rng)
            prepared = prepare(config)
            stream = prepared.train.tokens.tobytes()
            assert all(
                digest == good[name]
                for name, digest in listing(place.folder / "tokens").items()
                if not name.endswith("meta.json")
            ), f"{file.name}: the cache differs"
            assert len(stream) == prepared.train.tokens.nbytes > 0
            tried += 1
    yield Outcome("each file of the token cache damaged", tried, tried, "noticed, made again, the same tokens")


def damaged_export(place: Place) -> Iterator[Outcome]:
    """Each file of an export damaged in each way: the import is a sentence, or reads the very same weights."""
    if importlib.util.find_spec("safetensors") is None:
        yield Outcome("each file of an export damaged", 0, 0, "not tried: it needs the package safetensors")
        return
    folder, copy = place.folder / "export", place.folder / "export_copy"
    hf.export(load_run(trained(place)), folder)
    good = [np.asarray(a) for a in jax.tree.leaves(hf.load(folder).params)]
    seen: Counter[str] = Counter()
    for damage in DAMAGES.values():
        for file in sorted(p.name for p in folder.iterdir()):
            shutil.rmtree(copy, ignore_errors=True)
            shutil.copytree(folder, copy)
            damage(copy / file, place.rng)
            try:
                found = [np.asarray(a) for a in jax.tree.leaves(hf.load(copy).params)]
                assert all(np.array_equal(a, b) for a, b in zip(good, found, strict=True)), f"{file}: other weights"
                seen["the same weights"] += 1
            except UserError:
                seen["refused in a sentence"] += 1
    tried, detail = seen.total(), ", ".join(f"{number} {what}" for what, number in seen.most_common())
    yield Outcome("each file of an export damaged, then imported", tried, tried, detail)


def foreign_tokenizer(place: Place) -> Iterator[Outcome]:
    """Another run's tokenizer beside the weights: refused before a word is written."""
    copy = place.folder / "foreign"
    shutil.copytree(trained(place), copy)
    texts = iter(["another corpus altogether, of other words and other letters: zephyr, quartz, jigsaw. "] * 60)
    (copy / "tokenizer.model").write_bytes(train_tokenizer(texts, 300))
    said = call("--mode=sample", f"--workdir={copy}", "--prompt=once", cache=place.cache, code=2)
    assert "is not the tokenizer that the run was trained with" in said and "Traceback" not in said, said
    yield Outcome("a tokenizer that does not match the weights", 1, 1, "refused in a sentence")
