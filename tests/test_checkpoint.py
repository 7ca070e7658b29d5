"""mla_jax.train.checkpoint: what is kept, what comes back, and what a damaged checkpoint does."""

import dataclasses
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import grain
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mla_jax import checksums
from mla_jax.config import CheckpointConfig
from mla_jax.errors import UserError
from mla_jax.restore import check_numbers
from mla_jax.runs import RunFolder, checkpoint_losses
from mla_jax.train.checkpoint import Checkpoints
from mla_jax.train.state import TrainState


def state_at(step: int, router_bias: bool = False) -> TrainState:
    """A state whose every number tells its step."""
    params = {"w_a": jnp.full((3, 2), step, jnp.float32), "layer": {"gain": jnp.arange(4.0) + step}}
    opt_state = ({"count": jnp.int32(step)}, jax.tree.map(lambda a: a * 0.1, params))
    return TrainState(jnp.int32(step), params, opt_state, jnp.full((2, 4), -step, jnp.float32) if router_bias else None)


def data_at(place: int) -> grain.DatasetIterator:
    iterator = iter(grain.MapDataset.range(1000).to_iter_dataset())
    for _ in range(place):
        next(iterator)
    return iterator


def keep(every: int = 1, latest: int = 2, best: int = 1, steps: tuple[int, ...] = ()) -> CheckpointConfig:
    return CheckpointConfig(every, latest, best, steps)


def write(folder: RunFolder, losses: dict[int, float | None], cfg: CheckpointConfig) -> None:
    with Checkpoints(folder, cfg) as checkpoints:
        for step, loss in losses.items():
            metrics = None if loss is None else {"valid_loss": loss}
            checkpoints.save(state_at(step), data_at(step), metrics)


def restore(folder: RunFolder, cfg: CheckpointConfig, router_bias: bool = False) -> tuple[TrainState | None, int]:
    """The state and the next element of the data."""
    data = data_at(0)
    with Checkpoints(folder, cfg) as checkpoints:
        state = checkpoints.restore(jax.eval_shape(lambda: state_at(0, router_bias)), data)
    return state, next(data)


def damage(folder: RunFolder, step: int) -> None:
    for path in (folder.checkpoints / str(step) / "model").glob("**/d/*"):
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path / "run")


LOSSES = {1: 5.0, 2: 1.0, 3: 4.0, 4: 3.0, 5: 3.5, 6: 6.0}


@pytest.mark.parametrize(
    ("cfg", "kept"),
    [
        (keep(latest=2, best=1), [2, 5, 6]),  # the newest stay though neither is good
        (keep(latest=1, best=2), [2, 4, 6]),
        (keep(latest=1, best=0), [6]),
        (keep(latest=1, best=1, steps=(1, 3)), [1, 2, 3, 6]),
        (keep(latest=10, best=1), [1, 2, 3, 4, 5, 6]),
    ],
)
def test_newest_best_and_listed_steps_are_kept(folder: RunFolder, cfg: CheckpointConfig, kept: list[int]) -> None:
    write(folder, LOSSES, cfg)
    assert folder.steps() == kept
    assert checkpoint_losses(folder) == {step: LOSSES[step] for step in kept}


def test_a_checkpoint_without_a_loss_is_never_among_the_best(
    folder: RunFolder, caplog: pytest.LogCaptureFixture
) -> None:
    write(folder, {1: 2.0, 2: None, 3: 3.0, 4: None, 5: 4.0}, keep(latest=1, best=1))
    assert folder.steps() == [1, 5]
    # Orbax may also warn that a save took more than a second, which on a busy machine it does.
    said = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    assert not [text for text in said if "metrics" in text]


@pytest.fixture
def deleted() -> Iterator[list[Path]]:
    """What this process deletes, file by file or as a tree, in this order."""
    seen: list[Path] = []
    listening = [True]

    def listen(event: str, arguments: tuple) -> None:
        if listening and event in ("os.remove", "os.rmdir", "shutil.rmtree"):
            seen.append(Path(arguments[0]))

    sys.addaudithook(listen)  # for good: Python removes none
    yield seen
    listening.clear()


def test_a_checkpoint_loses_its_name_before_its_first_file(folder: RunFolder, deleted: list[Path]) -> None:
    """A kill amid its removal left a checkpoint without some of its files, named as damaged at the next start."""
    write(folder, {1: 1.0, 2: 2.0, 3: 3.0}, keep(latest=1, best=0))
    assert {path.name for path in folder.checkpoints.iterdir()} == {"3"}
    inside = [path.relative_to(folder.checkpoints).parts for path in deleted if path.is_relative_to(folder.checkpoints)]
    assert ("removed.tmp",) in inside
    assert not [parts for parts in inside if parts[0].isdigit()]


def test_a_removal_that_was_killed_is_ended_by_the_next_start(folder: RunFolder) -> None:
    write(folder, {1: 1.0, 2: 2.0}, keep())
    shutil.copytree(folder.checkpoints / "1", folder.checkpoints / "removed.tmp" / "7")
    (folder.checkpoints / "removed.tmp" / "7" / "model" / "_METADATA").unlink()
    assert folder.steps() == [1, 2]
    assert restore(folder, keep())[1] == 2
    assert {path.name for path in folder.checkpoints.iterdir()} == {"1", "2"}


def test_retention_goes_on_after_a_restart(folder: RunFolder) -> None:
    write(folder, {1: 1.0, 2: 2.0}, keep(latest=1, best=1))
    write(folder, {3: 3.0, 4: 4.0}, keep(latest=1, best=1))
    assert folder.steps() == [1, 4]


@pytest.mark.parametrize("router_bias", [False, True])
def test_everything_comes_back_bit_for_bit(folder: RunFolder, router_bias: bool) -> None:
    saved = state_at(7, router_bias)
    with Checkpoints(folder, keep()) as checkpoints:
        checkpoints.save(saved, data_at(21), {"valid_loss": 1.0})
        assert checkpoints.latest == 7
    state, following = restore(folder, keep(), router_bias)
    assert jax.tree.structure(state) == jax.tree.structure(saved)
    for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(saved), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)
    assert following == 21


def test_a_checkpoint_whose_bias_is_no_number_is_damaged(folder: RunFolder) -> None:
    good, bad = state_at(1, router_bias=True), state_at(2, router_bias=True)
    bad = dataclasses.replace(bad, router_bias=bad.router_bias.at[1, 2].set(jnp.nan))
    with Checkpoints(folder, keep()) as checkpoints:
        checkpoints.save(good, data_at(1), None)
        checkpoints.save(bad, data_at(2), None)
    state, _ = restore(folder, keep(), router_bias=True)
    assert int(state.step) == 1 and folder.steps() == [1]
    with pytest.raises(ValueError, match="its router_bias is not a number"):
        check_numbers(bad.router_bias)
    check_numbers(good.router_bias.at[0, 0].set(-jnp.inf))  # masks an expert
    check_numbers(None)


def test_a_save_copies_before_it_returns(folder: RunFolder) -> None:
    """The next step donates the state while the save goes on in the background."""
    with Checkpoints(folder, keep()) as checkpoints:
        state = state_at(3)
        checkpoints.save(state, data_at(3), None)
        jax.tree.map(lambda a: a.delete(), state)
    assert folder.steps() == [3]  # leaving waited for it
    state, _ = restore(folder, keep())
    np.testing.assert_array_equal(state.params["w_a"], np.full((3, 2), 3.0))


def test_nothing_to_restore(folder: RunFolder) -> None:
    assert restore(folder, keep()) == (None, 0)


def test_a_save_that_was_killed_is_no_checkpoint(folder: RunFolder) -> None:
    write(folder, {1: 1.0}, keep())
    unfinished = folder.checkpoints / "2.orbax-checkpoint-tmp"
    shutil.copytree(folder.checkpoints / "1", unfinished)
    assert folder.steps() == [1]
    state, following = restore(folder, keep())
    assert (int(state.step), following) == (1, 1)
    write(folder, {3: 1.0}, keep())  # a save waits until such leftovers are swept away
    assert {path.name for path in folder.checkpoints.iterdir()} == {"1", "3"}


def test_a_damaged_newest_gives_way_to_the_one_before(
    folder: RunFolder, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture
) -> None:
    write(folder, {3: 3.0, 6: 2.0, 9: 1.0}, keep(latest=3))
    damage(folder, 9)
    shutil.rmtree(folder.checkpoints / "6" / "train")
    state, following = restore(folder, keep(latest=3))
    assert (int(state.step), following) == (3, 3)
    np.testing.assert_array_equal(state.params["w_a"], np.full((3, 2), 3.0))
    for step in (9, 6):
        assert any(f"/{step} cannot be restored" in r.getMessage() for r in caplog.records if r.name == "absl")
    assert "Traceback" not in capfd.readouterr().err
    assert folder.steps() == [3]  # nothing would load the others, and the run may save those steps again

    write(folder, {6: 1.5}, keep(latest=3))
    assert folder.steps() == [3, 6]
    assert int(restore(folder, keep(latest=3))[0].step) == 6
    assert {path.name for path in folder.checkpoints.iterdir()} == {"3", "6", "6.damaged1", "9.damaged1"}


def test_a_flipped_bit_gives_way_to_the_one_before(folder: RunFolder, caplog: pytest.LogCaptureFixture) -> None:
    write(folder, {3: 3.0, 6: 2.0}, keep())
    path = max((folder.checkpoints / "6" / "train").rglob("*"), key=lambda p: p.stat().st_size * p.is_file())
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 16
    path.write_bytes(content)
    state, following = restore(folder, keep())
    assert (int(state.step), following) == (3, 3)
    assert any("does not have the content that was written" in r.getMessage() for r in caplog.records)


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"{}", b'{"valid_loss": null}', b"\xff", b'{"valid_loss": 9.0}'])
def test_a_damaged_loss_gives_way_to_the_one_before(
    folder: RunFolder, text: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """Orbax reads the losses of all checkpoints when it starts: one that was no JSON kept the run from resuming."""
    write(folder, {3: 3.0, 6: 2.0}, keep())
    (folder.checkpoints / "6" / "metrics" / "metrics").write_bytes(text)
    before = {path: path.read_bytes() for path in folder.checkpoints.rglob("*") if path.is_file()}
    state, following = restore(folder, keep())
    assert (int(state.step), following) == (3, 3)
    assert any("/6 cannot be restored (metrics/metrics" in r.getMessage() for r in caplog.records)
    assert {path.name for path in folder.checkpoints.iterdir()} == {"3", "6.damaged1"}
    # Also where no checksums tell, as in run folders of before; and with nothing else to go on from nothing is moved.
    (folder.checkpoints / "3" / checksums.NAME).unlink()
    (folder.checkpoints / "6.damaged1").rename(folder.checkpoints / "6")
    (folder.checkpoints / "3" / "metrics" / "metrics").write_bytes(b"{")
    with pytest.raises(UserError, match=r"none of the checkpoints 3, 6 in .* can be restored"):
        restore(folder, keep())
    (folder.checkpoints / "3" / "metrics" / "metrics").write_bytes(b'{"valid_loss": 3.0}')
    assert {path for path in folder.checkpoints.rglob("*") if path.is_file()} == set(before) - {
        folder.checkpoints / "3" / checksums.NAME
    }


def test_an_emptied_checkpoint_gives_way_to_the_one_before(folder: RunFolder, caplog: pytest.LogCaptureFixture) -> None:
    write(folder, {3: 3.0, 6: 2.0}, keep())
    shutil.rmtree(folder.checkpoints / "6")
    (folder.checkpoints / "6").mkdir()
    state, following = restore(folder, keep())
    assert (int(state.step), following) == (3, 3)
    assert any("/6 cannot be restored (it is empty)" in r.getMessage() for r in caplog.records)
    assert {path.name for path in folder.checkpoints.iterdir()} == {"3", "6.damaged1"}


def test_all_damaged_is_an_error_that_moves_nothing(folder: RunFolder) -> None:
    write(folder, {1: 2.0, 2: 1.0}, keep())
    damage(folder, 1)
    damage(folder, 2)
    with pytest.raises(UserError, match=r"none of the checkpoints 1, 2 in .* can be restored"):
        restore(folder, keep())
    assert folder.steps() == [1, 2]


def test_a_step_is_saved_once(folder: RunFolder) -> None:
    write(folder, {1: 2.0}, keep())
    before = {path: path.stat().st_mtime_ns for path in folder.checkpoints.rglob("*")}
    write(folder, {1: 1.0}, keep())
    assert {path: path.stat().st_mtime_ns for path in folder.checkpoints.rglob("*")} == before
