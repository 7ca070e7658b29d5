"""The trials of launch/reliability.sh: the quickest of them here, its quick form as a slow test."""

import json
import os
import random
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import jax
import pytest
from run_tools import REPOSITORY, small_config

from mla_jax import compile_cache
from mla_jax.main import main
from mla_jax.runs import Run, load_run
from mla_jax.train import loop

pytest_plugins = ["run_fixtures"]
HARNESS = Path(__file__).parent / "reliability"
if str(HARNESS) not in sys.path:
    sys.path.append(str(HARNESS))

import mutants  # noqa: E402 - in the folder that was just added
import storage  # noqa: E402
from kills import Place  # noqa: E402


@pytest.fixture
def place(run_env: Path, trained_run: Path, tmp_path: Path) -> Iterator[Place]:
    """A place with the session's run and cache."""
    place = Place(tmp_path, random.Random(0))
    place.cache = run_env
    shutil.copytree(trained_run, tmp_path / "run")
    compile_cache.enable()
    yield place
    jax.config.update("jax_compilation_cache_dir", None)


@pytest.mark.parametrize("trial", [storage.damaged_tokens, storage.damaged_export, storage.foreign_tokenizer])
def test_damage_is_noticed(trial, place: Place) -> None:
    if trial is storage.damaged_export:
        pytest.importorskip("safetensors")
    (outcome,) = trial(place)
    assert outcome.held == outcome.tried >= 1


def test_a_damaged_run_folder_is_never_read_wrongly(place: Place) -> None:
    outcomes = list(storage.damaged_files(place, every=9))
    assert len(outcomes) == len(storage.DAMAGES)
    assert all(o.held == o.tried >= 5 and "refused in a sentence" in o.detail for o in outcomes), outcomes


def test_the_trial_would_see_wrong_weights(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without checksums a flipped bit in an array is read as a weight: the trial is not blind to it."""
    monkeypatch.setattr("mla_jax.checksums.check", lambda folder, part="": None)
    good = load_run(place.folder / "run")
    weights = max((place.folder / f"run/checkpoints/{good.step}/model").rglob("d/*"), key=lambda p: p.stat().st_size)
    with pytest.raises(AssertionError, match="wrong weights"):
        flip_until_read(place, weights, good)


def flip_until_read(place: Place, weights: Path, good: Run) -> None:
    expected = storage.leaves_of(good), storage.write_story(good)
    content = weights.read_bytes()
    for _ in range(30):
        weights.write_bytes(content)
        storage.flip(weights, place.rng)
        storage.read_damaged(place.folder / "run", weights.name, good.step, *expected)


def test_after_damage_training_goes_on_from_the_checkpoint_before(place: Place) -> None:
    (outcome,) = storage.resumed_after_damage(place, 1)
    assert outcome.held == 1


def test_training_and_sampling_call_nobody(
    place: Place, stories_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No telemetry, no look-up of versions: not one connection, nor the name of a host."""
    called: list[object] = []

    def refuse(*arguments: object, **_: object) -> None:
        called.append(arguments)
        raise OSError("no network in this test")

    for name in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(socket.socket, name, refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    loop.train(small_config(stories_file), tmp_path / "alone")
    assert main(["mla_jax", "--mode=sample", f"--workdir={place.folder / 'run'}", "--prompt=once"]) == 0
    assert main(["mla_jax", "--mode=eval", f"--workdir={place.folder / 'run'}"]) == 0
    assert called == []


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_quick_form_finds_nothing(tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    paths = os.pathsep.join(map(str, (REPOSITORY, REPOSITORY / "tests", HARNESS)))
    command = [sys.executable, str(HARNESS / "run.py"), "--quick", "--rows", str(rows)]
    environment = os.environ | {"PYTHONPATH": paths, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    found = [json.loads(line) for line in rows.read_text().splitlines()]
    assert all(row["held"] == row["tried"] for row in found)
    assert {row["trial"] for row in found} >= {"files", "resume", "training", "preparation", "judging", "preemption"}


def test_mutants_are_made_of_code_that_is_there_and_shown_to_tests_that_are() -> None:
    for source, (functions, tests) in mutants.TARGETS.items():
        text = (REPOSITORY / source).read_text(encoding="utf-8")
        assert not [name for name in functions if f"def {name}(" not in text], source
        assert not [name for name in tests.split() if not (REPOSITORY / name).is_file()], source
