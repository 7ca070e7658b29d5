import subprocess
import sys
from pathlib import Path

import pytest
from fault_server import FaultServer
from judge_helpers import ENVIRONMENT, KEY, rows, settings

from mla_jax.errors import UserError
from mla_jax.judge.folders import default_out, judge_run_folders


def test_run_folders_without_a_model(tmp_path):
    (tmp_path / "empty").mkdir()
    for name, said in (("nothing", "there is no such folder"), ("empty", "has no config.json")):
        with pytest.raises(UserError, match=said):
            judge_run_folders([tmp_path / name], settings())
    assert [p.name for p in tmp_path.rglob("*")] == ["empty"]


def test_where_a_study_goes():
    assert default_out([Path("r/x")], settings(model="a/b:1")) == Path("r/x/judge/paper_a_a_b_1")
    assert default_out([Path("r/x"), Path("r/y")], settings()) == Path("r/judge_x_y/paper_a_judge-1")


@pytest.mark.slow
def test_a_trained_run_is_sampled_and_judged(tmp_path):
    train = [sys.executable, "-m", "mla_jax.main", "--config", "smoke", "--workdir", str(tmp_path / "run")]
    subprocess.run(train, check=True, capture_output=True, cwd=Path(__file__).parents[1])
    with FaultServer(key=KEY) as server:
        chosen = settings(server.url, cache_dir=str(tmp_path / "cache"), max_new_tokens=40)
        report = judge_run_folders([tmp_path / "run"], chosen, environment=ENVIRONMENT)
        with pytest.raises(UserError, match="must not exceed model.max_len"):
            long = settings(server.url, cache_dir=str(tmp_path / "cache"), max_new_tokens=4000)
            judge_run_folders([tmp_path / "run"], long, tmp_path / "long", environment=ENVIRONMENT)
    assert not (tmp_path / "long").exists()
    assert report == tmp_path / "run" / "judge" / "paper_a_judge-1" / "report.md"
    stories, result = rows(report.with_name("stories.jsonl")), rows(report.with_name("rows.jsonl"))[0]
    assert sum(s["source"] == "run" for s in stories) == 10
    assert result["name"] == "run" and len(result["config_hash"]) == 12 and len(result["tokenizer_sha256"]) == 64
    first = report.with_name("stories.jsonl").read_bytes()
    with FaultServer(key=KEY) as server:
        again = settings(server.url, cache_dir=str(tmp_path / "cache"), max_new_tokens=40)
        judge_run_folders([tmp_path / "run"], again, tmp_path / "again", environment=ENVIRONMENT)
        assert server.requests.total() == 0  # the same stories, every reply from the cache
    assert (tmp_path / "again" / "stories.jsonl").read_bytes() == first
