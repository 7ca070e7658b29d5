"""Every refusal: one sentence, and nothing written or spent."""

import pytest
from fault_server import FaultServer
from judge_helpers import ENVIRONMENT, STORIES, make_run, settings, study

from mla_jax.errors import UserError
from mla_jax.judge.evaluate import run
from mla_jax.judge.study_folder import RunToJudge


@pytest.fixture(autouse=True)
def quick_backoff(monkeypatch, tmp_path):
    monkeypatch.setattr("mla_jax.judge.client.backoff", lambda attempt: 0.01)
    monkeypatch.setenv("MLA_JAX_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (dict(num_prompts=11), "judge.num_prompts was 10 and is 11"),
        (dict(model="judge-2"), "judge.model was 'judge-1' and is 'judge-2'"),
        (dict(rubric="paper_b"), "judge.rubric was 'paper_a'"),
        (dict(runs=[make_run("z", STORIES)]), "its runs were a and are z"),
        (
            dict(runs=[RunToJudge("a", None, STORIES, "ca", "d", step=200)]),
            "step of run a was 100 and is 200",
        ),
    ],
)
def test_another_study_is_not_mixed_in(tmp_path, changes, said):
    with FaultServer() as server:
        study(server, tmp_path)
        before = (tmp_path / "judgements.jsonl").read_bytes()
        with pytest.raises(UserError, match=said):
            study(server, tmp_path, **changes)
    assert (tmp_path / "judgements.jsonl").read_bytes() == before


BAD_SETTINGS = [
    (dict(rubric="paper_x"), "judge.rubric is 'paper_x'"),
    (dict(model=""), "judge.model is ''; it must be the judge's name"),
    (dict(budget_usd=0), "judge.budget_usd is 0; it must be above 0: set judge.budget_usd to"),
    (dict(budget_usd=float("nan")), "judge.budget_usd is nan"),
    (dict(base_url="localhost:80/v1"), "judge.base_url is 'localhost:80/v1'"),
    (dict(base_url="http://host:port/v1"), "judge.base_url"),
    (dict(base_url="ftp://host/v1"), "judge.base_url"),
    (dict(num_prompts=0), "judge.num_prompts is 0"),
    (dict(num_prompts=3), "judge.builtin_prompts is 4; it must be at most judge.num_prompts"),
    (dict(num_controls=5), "judge.num_controls is 5; it must be a whole number from 8"),
    (dict(concurrency=0), "judge.concurrency is 0"),
    (dict(concurrency=2.5), "judge.concurrency is 2.5"),
    (dict(timeout_s=0), "judge.timeout_s is 0"),
    (dict(price_in=-1.0), "judge.price_in is -1.0"),
    (dict(repeat_share=1.5), "judge.repeat_share is 1.5"),
    (dict(stories_per_prompt=2, temperature=0.0), "judge.stories_per_prompt is 2; it must be 1 where"),
]


@pytest.mark.parametrize(("changes", "said"), BAD_SETTINGS, ids=[str(c) for c, _ in BAD_SETTINGS])
def test_bad_settings_are_one_sentence_and_write_nothing(tmp_path, changes, said):
    with pytest.raises(UserError, match=said) as error:
        run(settings(**changes), [make_run("a", STORIES)], tmp_path / "out", environment=ENVIRONMENT)
    assert "\n" not in str(error.value) and not (tmp_path / "out").exists()


def test_bad_surroundings_are_one_sentence_and_write_nothing(tmp_path):
    out, a = tmp_path / "out", make_run("a", STORIES)
    cases = [
        (dict(), [a], "gives no answer .*check judge.base_url"),
        (dict(base_url="https://judge.invalid/v1"), [a], "OPENAI_API_KEY is not set"),
        (dict(), [], "no run to judge"),
        (dict(), [a, a], "'a' is taken twice"),
        (dict(), [make_run("a", STORIES[:3])], "only 3 of 3 held-out stories can serve as controls"),
    ]
    for changes, runs, said in cases:
        with pytest.raises(UserError, match=said):
            run(settings(**changes), runs, out, environment={})
        assert not out.exists()
    with FaultServer(key="sk-another", models=["x"]) as server:
        for environment, said in (
            (ENVIRONMENT, "refuses the key"),
            ({"OPENAI_API_KEY": "sk-another"}, "does not serve"),
        ):
            with pytest.raises(UserError, match=said):
                run(settings(server.url), [a], out, environment=environment)
            assert not out.exists() and server.requests.total() == 0


def test_a_sampler_that_drops_a_story_is_found_out(tmp_path):
    short = RunToJudge("a", lambda prompts, **_: prompts[1:], STORIES)
    with FaultServer() as server, pytest.raises(UserError, match="gave 9 stories for 10 prompts"):
        study(server, tmp_path, [short])
    assert not (tmp_path / "stories.jsonl").exists()
