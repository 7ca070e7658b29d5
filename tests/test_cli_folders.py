"""Run folders that no mode can read, and work folders that training refuses, through the real command line."""

import contextlib
import shutil
import stat
from pathlib import Path

import pytest
from run_tools import edit_json, listing, train_flags, write_stories

from mla_jax import runs

pytest_plugins = ["run_fixtures", "refusals"]
pytestmark = pytest.mark.usefixtures("run_env")


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def cut_weights(run: Path) -> None:
    """Every array file of every checkpoint's `model`, cut in half."""
    for path in run.glob("checkpoints/*/model/**/d/*"):
        cut(path)


def each_checkpoint(run: Path, item: str) -> None:
    for path in run.glob(f"checkpoints/*/{item}"):
        shutil.rmtree(path)


RUN_FOLDERS = {
    "no_folder": (shutil.rmtree, "no such folder"),
    "a_file": (lambda run: (shutil.rmtree(run), run.write_text("x")), "no such folder"),
    "not_a_run": (lambda run: (run / "config.json").unlink(), "no config.json"),
    "config_cut": (lambda run: cut(run / "config.json"), "config.json", "copy the run folder again"),
    "config_not_json": (lambda run: (run / "config.json").write_text("{"), "config.json", "is not a config"),
    "config_binary": (lambda run: (run / "config.json").write_bytes(b"\xff\xfe\0"), "config.json"),
    "config_a_list": (lambda run: (run / "config.json").write_text("[1]"), "config.json", "is not a config"),
    "config_newer": (lambda run: edit_json(run / "config.json", lambda c: c.update(format=999)), "999", "upgrade"),
    "config_format_0": (lambda run: edit_json(run / "config.json", lambda c: c.update(format=0)), "config.json"),
    "config_unknown_knob": (
        lambda run: edit_json(run / "config.json", lambda c: c["config"]["model"].update(magic=1)),
        "config.json",
        "model.magic",
    ),
    "config_knob_missing": (
        lambda run: edit_json(run / "config.json", lambda c: c["config"]["model"].pop("d_ff")),
        "config.json",
        "model.d_ff",
    ),
    "config_other_width": (
        lambda run: edit_json(run / "config.json", lambda c: c["config"]["model"].update(d_ff=64)),
        "cannot be restored",
    ),
    "no_checkpoints": (lambda run: shutil.rmtree(run / "checkpoints"), "no finished checkpoint"),
    "checkpoints_empty": (
        lambda run: [shutil.rmtree(p) for p in (run / "checkpoints").iterdir()],
        "no finished checkpoint",
    ),
    "model_item_deleted": (lambda run: each_checkpoint(run, "model"), "cannot be restored", "copy the run folder"),
    "weights_cut": (cut_weights, "cannot be restored"),
    "tokenizer_missing": (lambda run: (run / "tokenizer.model").unlink(), "tokenizer.model", "missing"),
    "tokenizer_cut": (lambda run: cut(run / "tokenizer.model"), "tokenizer.model", "is damaged: copy it again."),
    "a_hugging_face_folder": (
        lambda run: (run / "config.json").write_text('{"architectures": ["GPT2LMHeadModel"]}'),
        "python -m mla_jax.interop.import_hf --hf",
    ),
    "best_checkpoint_emptied": (
        lambda run: (shutil.rmtree(run / "checkpoints" / "10"), (run / "checkpoints" / "10").mkdir()),
        "may be the best one",
        "--step=5 reads it",
    ),
    "data_json_missing": (lambda run: (run / "data.json").unlink(), "data.json"),
    "data_json_cut": (lambda run: cut(run / "data.json"), "data.json"),
    "data_json_empty": (lambda run: (run / "data.json").write_text("{}"), "data.json"),
}


@pytest.mark.parametrize("name", RUN_FOLDERS)
@pytest.mark.parametrize("mode", ["sample", "eval", "export"])
def test_a_bad_run_folder_is_refused(refused, trained_run: Path, tmp_path: Path, name: str, mode: str) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained_run, run)
    damage, *words = RUN_FOLDERS[name]
    damage(run)
    before = listing(tmp_path)
    more = [f"--out={tmp_path / 'out'}"] if mode == "export" else []
    refused(f"--mode={mode}", f"--workdir={run}", *more, words=(str(run), *words))
    assert listing(tmp_path) == before


@pytest.mark.parametrize("mode", ["sample", "eval", "export", "judge", "bench"])
def test_every_mode_that_reads_runs_knows_a_mistyped_one(refused, tmp_path: Path, mode: str) -> None:
    (tmp_path / "mla_rope").mkdir()
    (tmp_path / "mla_rope" / "config.json").write_text("{}")
    before = listing(tmp_path)
    more = [f"--out={tmp_path / 'out'}"] if mode in ("export", "bench") else []
    more += ["--judge_model=x"] if mode == "judge" else []
    words = ("no such folder", f"(did you mean {tmp_path}/mla_rope?)")
    refused(f"--mode={mode}", f"--workdir={tmp_path}/mla_rop", *more, words=words)
    assert listing(tmp_path) == before


def test_a_tokenizer_of_another_run_is_refused(refused, trained_run: Path, tmp_path: Path) -> None:
    """Even one with the same number of pieces, whose ids would mean other text."""
    from mla_jax.data.tokenizer import Tokenizer, train_tokenizer

    run = tmp_path / "run"
    shutil.copytree(trained_run, run)
    pieces = Tokenizer.load(run / "tokenizer.model").vocab_size
    other = train_tokenizer(["another language entirely, with other words " + str(i) for i in range(99)], pieces)
    assert Tokenizer(other).vocab_size == pieces
    (run / "tokenizer.model").write_bytes(other)
    for mode in ("sample", "eval"):
        refused(f"--mode={mode}", f"--workdir={run}", words=("tokenizer.model", "trained with"))
    refused(
        *train_flags(write_stories(tmp_path / "s.txt"), run, **{"train.steps": 12}),
        words=("tokenizer.model", "trained with"),
    )


def test_a_step_without_checkpoint_is_refused(refused, trained_run: Path) -> None:
    for mode in ("sample", "eval"):
        refused(f"--mode={mode}", f"--workdir={trained_run}", "--step=7", words=("--step is 7", "5, 10"))


def test_eval_says_that_its_data_is_gone_or_changed(refused, trained_run: Path, tmp_path: Path) -> None:
    run, stories = tmp_path / "run", write_stories(tmp_path / "stories.txt", 200, seed=1)
    shutil.copytree(trained_run, run)
    edit_json(run / "config.json", lambda c: c["config"]["data"].update(path=str(stories)))
    refused("--mode=eval", f"--workdir={run}", words=("fingerprint", "--data.path"))
    stories.unlink()
    refused("--mode=eval", f"--workdir={run}", words=(str(stories), "no such file"))
    refused("--mode=eval", f"--workdir={run}", f"--data.path={stories}", words=(str(stories), "no such file"))
    assert not (run / "eval").exists()


def foreign(workdir: Path, run: Path) -> None:
    workdir.mkdir()
    (workdir / "thesis.txt").write_text("do not touch")


def hugging_face(workdir: Path, run: Path) -> None:
    """Taken for a new run folder, it would lose its config.json."""
    workdir.mkdir()
    (workdir / "config.json").write_text('{"architectures": ["GPT2LMHeadModel"]}')


def imported(workdir: Path, run: Path) -> None:
    shutil.copytree(run, workdir)
    for path in workdir.glob("checkpoints/*/train"):
        shutil.rmtree(path)


WORKDIRS = {
    "hugging_face": (hugging_face, "config.json", "empty folder"),
    "imported": (imported, "without an optimizer state", "--config.init_from="),
    "a_file": (lambda workdir, run: workdir.write_text("x"), "no folder"),
    "a_dangling_link": (lambda workdir, run: workdir.symlink_to(run / "nowhere"), "no folder"),
    "foreign_files": (foreign, "thesis.txt", "empty folder"),
    "config_cut": (lambda workdir, run: (shutil.copytree(run, workdir), cut(workdir / "config.json")), "config.json"),
    "tokenizer_missing": (
        lambda workdir, run: (shutil.copytree(run, workdir), (workdir / "tokenizer.model").unlink()),
        "tokenizer.model",
    ),
    "data_json_missing": (
        lambda workdir, run: (shutil.copytree(run, workdir), (workdir / "data.json").unlink()),
        "data.json",
    ),
}


@pytest.mark.parametrize("name", WORKDIRS)
def test_a_bad_workdir_is_refused_for_training(
    refused, trained_run: Path, stories_file: Path, tmp_path: Path, name: str
) -> None:
    damage, *words = WORKDIRS[name]
    damage(tmp_path / "run", trained_run)
    before = listing(tmp_path)
    refused(*train_flags(stories_file, tmp_path / "run", **{"train.steps": 12}), words=(str(tmp_path / "run"), *words))
    assert listing(tmp_path) == before


def test_a_workdir_inside_a_file_is_refused(refused, stories_file: Path) -> None:
    refused(*train_flags(stories_file, stories_file / "run"), words=(str(stories_file), "no folder"))


@pytest.mark.parametrize("name", ["run[1]", "run*", "run?"])
def test_a_workdir_that_orbax_would_take_for_a_pattern_is_refused(refused, stories_file, tmp_path, name: str) -> None:
    """It saves checkpoints without arrays there."""
    refused(*train_flags(stories_file, tmp_path / name), words=(name, "without * ? ["))
    (tmp_path / name).mkdir()
    (tmp_path / "link").symlink_to(tmp_path / name)
    refused(*train_flags(stories_file, tmp_path / "link" / "run"), words=("full path",))
    assert list((tmp_path / name).iterdir()) == []


def test_a_workdir_that_cannot_be_made_is_refused(refused, stories_file: Path, tmp_path: Path) -> None:
    refused(*train_flags(stories_file, tmp_path / ("x" * 300)), words=("--workdir", "name too long"))
    closed = tmp_path / "closed"
    closed.mkdir(mode=stat.S_IRUSR | stat.S_IXUSR)
    with contextlib.suppress(PermissionError):
        (closed / "probe").touch()
        pytest.skip("this user writes to read-only folders")
    refused(*train_flags(stories_file, closed / "run"), words=("--workdir", "cannot be written to"))


def test_a_workdir_that_is_being_trained_in_is_refused(refused, stories_file: Path, tmp_path: Path) -> None:
    folder = runs.RunFolder(tmp_path / "run")
    with runs.lock(folder):
        before = listing(tmp_path)
        refused(*train_flags(stories_file, folder.path), words=("another process", str(folder.path)))
        assert listing(tmp_path) == before
    with runs.lock(folder):
        pass  # free again
