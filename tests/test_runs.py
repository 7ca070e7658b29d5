"""mla_jax.runs: the folder's layout and lock, which checkpoint is loaded, and weights equal to those saved."""

import json
import multiprocessing
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from mla_jax import checksums, restore, runs
from mla_jax.errors import UserError
from mla_jax.files import write_text
from mla_jax.runs import RunFolder

pytest_plugins = ["run_fixtures"]


def set_losses(folder: RunFolder, losses: dict[int, float]) -> None:
    for step, loss in losses.items():
        (folder.checkpoints / str(step) / "metrics" / "metrics").write_text(json.dumps({"valid_loss": loss}))
        checksums.seal(folder.checkpoints / str(step))


@pytest.fixture
def copy(trained_run: Path, tmp_path: Path) -> RunFolder:
    shutil.copytree(trained_run, tmp_path / "copy")
    return RunFolder(tmp_path / "copy")


def test_a_run_folder_has_what_its_layout_says(trained_run: Path) -> None:
    folder = runs.existing(trained_run)
    for path in (folder.config, folder.tokenizer, folder.data, folder.metrics, folder.samples, folder.report):
        assert path.is_file(), path
    assert folder.steps() == [5, 10]
    assert folder.name == trained_run.name
    data = runs.read_data(folder)
    assert data["baselines"]["unigram"] < data["baselines"]["uniform"]
    assert data["tokenizer_sha256"] == runs.read_tokenizer(folder).sha256


def test_steps_are_numbers_of_folders(copy: RunFolder) -> None:
    (copy.checkpoints / "7").write_text("a file")
    for name in ("8.orbax-checkpoint-tmp", "9.damaged1", "best"):
        (copy.checkpoints / name).mkdir()
    (copy.checkpoints / "100").mkdir()
    assert copy.steps() == [5, 10, 100]
    assert RunFolder(copy.path / "nowhere").steps() == []


def test_the_best_checkpoint_is_loaded_unless_told_otherwise(copy: RunFolder) -> None:
    set_losses(copy, {5: 1.0, 10: 2.0})
    assert runs.load_run(copy.path).step == 5
    assert runs.load_run(copy.path, best=False).step == 10
    assert runs.load_run(copy.path, step=10).step == 10
    set_losses(copy, {5: 2.0, 10: 1.0})
    assert runs.load_run(copy.path).step == 10


def test_without_recorded_losses_the_newest_is_loaded(copy: RunFolder) -> None:
    """Checkpoints saved between two evaluations have none, and older ones no checksums."""
    for step in (5, 10):
        shutil.rmtree(copy.checkpoints / str(step) / "metrics")
        (copy.checkpoints / str(step) / checksums.NAME).unlink()
    assert runs.read_losses(copy) == ({}, {})
    assert runs.load_run(copy.path).step == 10
    checksums.seal(copy.checkpoints / "10")
    assert runs.load_run(copy.path).step == 10


def empty(checkpoint: Path) -> None:
    shutil.rmtree(checkpoint)
    checkpoint.mkdir()


def flip_the_loss(checkpoint: Path) -> None:
    """One flipped bit makes 0.28 of 4.28, and the worse model would be taken for the better one."""
    path = checkpoint / "metrics" / "metrics"
    path.write_text(path.read_text().replace("1", "7"))


def cut_an_old_loss(checkpoint: Path) -> None:
    (checkpoint / checksums.NAME).unlink()
    (checkpoint / "metrics" / "metrics").write_text("{")


LOST_LOSSES = {
    "emptied": (empty, "it is empty"),
    "without_metrics": (lambda checkpoint: shutil.rmtree(checkpoint / "metrics"), "metrics/"),
    "flipped": (flip_the_loss, "metrics/metrics does not have the content"),
    "cut_without_checksums": (cut_an_old_loss, "Expecting property name"),
}


@pytest.mark.parametrize("name", LOST_LOSSES)
def test_a_checkpoint_that_may_be_the_best_is_not_passed_over(
    copy: RunFolder, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Reading names it and another, as for damaged weights; what only lists losses leaves it out."""
    damage, reason = LOST_LOSSES[name]
    set_losses(copy, {5: 3.0, 10: 1.0})
    damage(copy.checkpoints / "10")
    with pytest.raises(UserError, match=rf"/10 may be .*\({reason}.*\): the newest good one is 5, --step=5 reads it\."):
        runs.load_run(copy.path)
    assert runs.load_run(copy.path, step=5).step == 5
    assert runs.checkpoint_losses(copy) == {5: 3.0}
    assert f"checkpoints/10 is unknown: {reason}" in caplog.text
    empty(copy.checkpoints / "5")
    with pytest.raises(UserError, match=r"/10 may be .*: copy the run folder again\."):
        runs.load_run(copy.path)


def test_the_checkpoints_differ_and_fit_the_model(trained_run: Path) -> None:
    five, ten = runs.load_run(trained_run, 5), runs.load_run(str(trained_run), 10)
    wanted = restore.abstract_params(ten.model)
    for run in (five, ten):
        assert jax.tree.structure(run.params) == jax.tree.structure(wanted)
        assert all(
            (a.shape, a.dtype) == (b.shape, b.dtype)
            for a, b in zip(jax.tree.leaves(run.params), jax.tree.leaves(wanted), strict=True)
        )
    assert not np.array_equal(five.params["embedding"], ten.params["embedding"])


def test_the_error_names_the_newest_good_checkpoint(copy: RunFolder) -> None:
    set_losses(copy, {5: 2.0, 10: 1.0})
    shutil.rmtree(copy.checkpoints / "10" / "model")
    with pytest.raises(UserError, match=r"10 cannot be restored .*: the newest good one is 5, --step=5 reads it\."):
        runs.load_run(copy.path)
    assert runs.load_run(copy.path, step=5).step == 5
    flip_a_bit(copy, 5)
    with pytest.raises(UserError, match=r"10 cannot be restored .*: copy the run folder again\."):
        runs.load_run(copy.path)


def test_whole_weights_that_do_not_fit_the_config_send_nobody_to_another_checkpoint(copy: RunFolder) -> None:
    content = json.loads(copy.config.read_text())
    content["config"]["model"]["d_ff"] += 8
    copy.config.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"10 cannot be restored .* config\.json is of another run: copy the run"):
        runs.load_run(copy.path, step=10)


def flip_a_bit(folder: RunFolder, step: int) -> None:
    """In the largest file of the weights, which TensorStore would load without a word."""
    path = max((folder.checkpoints / str(step) / "model").rglob("*"), key=lambda p: p.stat().st_size * p.is_file())
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_a_flipped_bit_in_the_weights_is_found(copy: RunFolder) -> None:
    flip_a_bit(copy, 10)
    with pytest.raises(UserError, match=r"10 cannot be restored \(model/.* does not have the content .*one is 5"):
        runs.load_run(copy.path, step=10)


def test_errors_name_the_field_that_gave_the_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="^init_from is .*no such folder"):
        runs.load_run(tmp_path / "none", field="init_from")
    with pytest.raises(UserError, match="^--workdir is .*no such folder"):
        runs.load_run(tmp_path / ("x" * 300))


def test_a_mistyped_run_folder_is_told_the_run_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("mla_rope", "mha", "quickstart"):
        (tmp_path / "runs" / name).mkdir(parents=True)
        (tmp_path / "runs" / name / "config.json").write_text("{}")
    (tmp_path / "runs" / "mla_ropes").mkdir()  # no run: it is never what was meant

    def sentence(workdir: str | Path) -> str:
        with pytest.raises(UserError) as error:
            runs.existing(workdir)
        return str(error.value)

    monkeypatch.chdir(tmp_path)
    for written in ("runs/mla_rop", "runs/mla_rop/"):
        assert "no such folder (did you mean runs/mla_rope?): train" in sentence(written)
    assert f"(did you mean {tmp_path}/runs/mha?)" in sentence(tmp_path / "runs" / "mhaa")
    assert "no run folder of mla_jax (did you mean runs/mla_rope?): give" in sentence("runs/mla_ropes")
    for far in ("runs/entirely_different", "rums/mla_rope", "runs/" + "x" * 300, "nowhere", "/", "."):
        assert "did you mean" not in sentence(far)
    monkeypatch.chdir(tmp_path / "runs")
    assert "(did you mean quickstart?)" in sentence("quikstart")


def test_a_hugging_face_folder_is_told_how_to_become_a_run(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}')
    with pytest.raises(
        UserError, match=r"^init_from is .* python -m mla_jax\.interop\.import_hf --hf .* --workdir NEW\.$"
    ):
        runs.load_run(tmp_path, field="init_from")
    for text in ("[1]", "3", "{", '{"config": {}}', "[" * 10**5):
        (tmp_path / "config.json").write_text(text)
        assert not runs.is_hugging_face(RunFolder(tmp_path))


def test_write_text_replaces_and_leaves_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_text(path, "old")
    write_text(path, "new \u00e9")
    assert path.read_text(encoding="utf-8") == "new \u00e9"
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def hold(path: Path, held: multiprocessing.Event) -> None:
    with runs.lock(RunFolder(path)):
        held.set()
        held.wait()
        while True:
            pass


def test_the_lock_excludes_and_dies_with_its_process(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    held = context.Event()
    process = context.Process(target=hold, args=(tmp_path / "run", held), daemon=True)
    process.start()
    try:
        assert held.wait(60)
        with pytest.raises(UserError, match="another process"), runs.lock(RunFolder(tmp_path / "run")):
            pytest.fail("two hold it")
    finally:
        process.kill()
        process.join()
    with runs.lock(RunFolder(tmp_path / "run")):
        pass


def test_the_lock_is_released_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), runs.lock(RunFolder(tmp_path)):
        1 / 0  # noqa: B018
    with runs.lock(RunFolder(tmp_path)):
        pass
