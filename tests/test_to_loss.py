"""mla_jax.bench.to_loss: where curves reach a loss, and the tables of steps and seconds made of rows."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from run_tools import REPOSITORY
from study_rows import row

from mla_jax.bench import to_loss
from mla_jax.config_files import load_config, load_config_dict
from mla_jax.errors import UserError
from mla_jax.study.grid import from_config_dict
from mla_jax.study.plan import plan
from mla_jax.study.results import collect
from mla_jax.study.rows import Rows, key_of_row
from mla_jax.study.verdicts import CONFIRMED, judge

CURVE = [(10, 5.0), (20, 4.0), (30, 4.0), (40, 3.0), (50, 3.5)]


def test_the_two_losses_of_a_reference() -> None:
    assert to_loss.targets(CURVE) == {"its loss at step 30": (4.0, 30.0), "its best loss": (3.0, 40.0)}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """All rows of the smoke study, Muon twice as fast as AdamW, and torch's at two rates."""
    study, found = from_config_dict(load_config_dict("study_muon:smoke")), {}
    while tasks := [task for task in plan(study, Rows(found)).tasks if task.key not in found]:
        for task in tasks:
            pace = 2 if task.point.name == "mla_rope_muon" else 1
            penalty = abs(task.learning_rate - 2e-3)  # of all the rates 2e-3 is the best
            curve = [[step, 5.0 - 0.1 * pace * step + penalty] for step in range(4, 21, 4)]
            made = row(task, curve[-1][1], curve={"eval": curve})
            startup = {
                "imports": 9.0,
                "device": 8.0,
                "data": 0.25,
                "state": 0.5,
                "batch": 1.5,
                "compile": 0.5,
                "first step": 0.25,
            }
            made["metrics"] |= {"tokens_per_s": 1280.0, "startup_s": startup}
            found[key_of_row(made)] = made
    folder = tmp_path_factory.mktemp("rows")
    (folder / "study.jsonl").write_text("".join(json.dumps(each) + "\n" for each in found.values()))
    peers = []
    for rate, loss in ((1e-3, 3.9), (2e-3, 4.0)):
        metrics = {"best_valid_loss": loss, "tokens_per_s": 2560.0, "first_step_s": 7.0}
        peer = {"name": f"torch_{rate}", "metrics": metrics, "curve": {"eval": [(6, 4.5), (12, 4.2), (20, loss)]}}
        peers.append(peer | {"data_fingerprint": "f" * 64, "device": "cpu x86_64", "tokens_per_step": 128})
    (folder / "torch.jsonl").write_text("".join(json.dumps(each) + "\n" for each in peers))
    return [folder / "study.jsonl", folder / "torch.jsonl"]


def test_the_table_of_steps_and_the_table_of_seconds(files: list[Path]) -> None:
    text = to_loss.report("study_muon:smoke", files)
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]
    # Muon has 5 - 0.2 step where AdamW has 5 - 0.1 step: half of the steps, at every seed and each one's best rate.
    assert cells[2][:6] == ["mla_rope", "0.002 / 0.002", "its loss at step 12", "6 / 12", "0.0 / 0.0", "50.0 %"]
    assert cells[3][:4] == ["mla_rope", "0.002 / 0.002", "its best loss", "10 / 20"]
    assert cells[3][6] == "50.0, 50.0"
    # torch's best rate: 4.2 after 12 steps of 128 tokens at 2,560 tokens/s; AdamW's 8 steps take 0.8 s, Muon's 4 half.
    assert ["**torch_0.001**", "", "its loss at step 12: 4.2000", "12", "0.6", "1", "7"] in cells
    assert ["mla_rope_adamw, seed 0", "0.002", "4.2000", "8", "0.8", "1.333", "3"] in cells
    assert ["mla_rope_muon, seed 1", "0.002", "4.2000", "4", "0.4", "0.667", "3"] in cells
    assert "All runs of the study are done." in text


def test_runs_that_shared_a_device_have_steps_and_no_seconds(files: list[Path], tmp_path: Path) -> None:
    rows = [json.loads(line) for line in files[0].read_text().splitlines()]
    for each in rows:
        each["study"]["sharing"] = 3 if each["name"] == "mla_rope_muon" else 1
    shared = tmp_path / "shared.jsonl"
    shared.write_text("".join(json.dumps(each) + "\n" for each in rows))
    text = to_loss.report("study_muon:smoke", [shared, files[1]])
    assert "| mla_rope_muon, seed 1 | 0.002 | 4.2000 | 4 | shared | - | shared |" in text
    assert "| mla_rope_adamw, seed 0 | 0.002 | 4.2000 | 8 | 0.8 | 1.333 | 3 |" in text
    assert "| mla_rope | 0.002 / 0.002 | its best loss | 10 / 20 |" in text  # steps are what they are


def test_without_torch_there_is_one_table_and_without_rows_a_sentence(files: list[Path], tmp_path: Path) -> None:
    text = to_loss.report("study_muon:smoke", files[:1])
    assert "its best loss" in text and "over torch" not in text
    with pytest.raises(UserError, match="'missing.jsonl' is no file of rows"):
        to_loss.report("study_muon:smoke", [Path("missing.jsonl")])
    with pytest.raises(UserError, match="no row of study_muon:smoke among them: run launch/gpu_muon.sh"):
        to_loss.report("study_muon:smoke", files[1:])


@pytest.mark.parametrize("form", ["", ":files"])
def test_paper_cs_claims_are_judged_by_it(form: str) -> None:
    study, found = from_config_dict(load_config_dict(f"study_muon{form}")), {}
    while tasks := [task for task in plan(study, Rows(found)).tasks if task.key not in found]:
        for task in tasks:
            pace = 2 if task.point.name.endswith("muon") else 1
            curve = [[step, 5.0 - 0.001 * pace * step - 1e-3 * task.seed] for step in range(50, 1001, 50)]
            made = row(task, curve[-1][1], curve={"eval": curve})
            found[key_of_row(made)] = made
    judged = {j.claim.id: j for j in judge(collect(study, Rows(found)))}
    assert set(judged) == {"C1", "C2"} and {j.verdict for j in judged.values()} == {CONFIRMED}
    share = judged["C1"].test
    assert (share.what, share.found.mean) == ("mla_rope_muon against mla_rope_adamw", pytest.approx(50))
    assert judged["C2"].test.found.n == 3
    assert {j.verdict for j in judge(collect(study, Rows({})))} == {"undecided: no rows yet"}


def test_both_optimizers_are_tuned_over_as_many_rates_and_share_everything_else() -> None:
    study = from_config_dict(load_config_dict("study_muon:files"))
    adamw, muon = (next(p for p in study.points if p.name == f"mla_rope_{name}") for name in ("adamw", "muon"))
    assert len(adamw.learning_rates) == len(muon.learning_rates) == 4 and adamw.seeds == muon.seeds == (0, 1, 2)
    assert dict(muon.knobs) == {"optim.name": "muon"} and dict(adamw.knobs) == {"optim.name": "adamw"}
    assert study.config(adamw, 0).model == study.config(muon, 0).model == load_config(
        "mla_rope:m", **{"train.batch_size": 64}
    ).model  # fmt: skip


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_the_script_trains_resumes_and_reports(tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="the peer needs torch: pip install '.[hf]'")
    environment = os.environ | {"SMOKE": "1", "PYTHON": sys.executable, "PYTHONPATH": str(REPOSITORY)}
    environment |= {"MLA_JAX_CACHE": str(tmp_path / "cache"), "JAX_PLATFORMS": "cpu"}

    copy = tmp_path / "repository"  # whose folder runs/ gets the study's
    copy.mkdir()
    for name in ("configs", "launch", "mla_jax"):
        (copy / name).symlink_to(REPOSITORY / name)

    def call(part: str) -> str:
        command = ["bash", str(copy / "launch" / "gpu_muon.sh"), str(tmp_path / "out"), part]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=800)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    assert call("torch").count("validation loss") == 2
    assert call("torch").count("is done") == 2
    assert any("0 to go" in call("study") for _ in range(5))  # a slow machine takes several pieces
    text = call("report")
    assert "All runs of the study are done" in text and "**torch_xs_" in text and "| mla_rope |" in text
