"""mla_jax.facts: candidate log-probabilities are those of the plain forward pass; files carry no facts."""

import dataclasses
import math
import re
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import rich.console
from tiny import REFERENCE

from mla_jax import config as config_lib
from mla_jax import facts
from mla_jax.config_files import load_config
from mla_jax.data.tokenizer import Tokenizer, train_tokenizer
from mla_jax.errors import UserError
from mla_jax.model.transformer import Transformer, variables_of
from mla_jax.runs import RunFolder
from mla_jax.world import questions, stories


@pytest.fixture(scope="module")
def run():
    tokenizer = Tokenizer(train_tokenizer((row["text"] for row in stories(100, 0)), 512))
    config = load_config("smoke", **{"model.max_len": 160, "model.position": "learned", "model.attention": "mha"})
    size = tokenizer.vocab_size
    config = config_lib.replace(config, **{"model.vocab_size": size, "tokenizer.vocab_size": size})
    model = Transformer(config.model, REFERENCE)
    params = model.init(jax.random.key(0), jnp.zeros((1, 8), jnp.int32))["params"]
    params = jax.tree.map(lambda a: a + 0.05 * jax.random.normal(jax.random.key(1), a.shape), params)
    folder = types.SimpleNamespace(path="runs/x", name="x")
    variables = variables_of(params)
    return types.SimpleNamespace(config=config, tokenizer=tokenizer, model=model, variables=variables, folder=folder)


def test_logprobs_are_those_of_the_whole_text(run):
    probes = list(questions.probes(stories(3, 0, "valid")))[:6]
    found = list(facts.logprob_fn(run)(probes))
    for probe, logprobs in zip(probes, found, strict=True):
        assert len(logprobs) == len(probe.candidates)
        for candidate, logprob in zip(probe.candidates, logprobs, strict=True):
            # The whole text encoded at once, cut to the model's length as the docstring says.
            tail = len(run.tokenizer.encode(candidate))
            whole = [run.tokenizer.separator_id, *run.tokenizer.encode(probe.prefix + candidate)][-161:]
            logits, _ = run.model.apply(run.variables, jnp.asarray([whole[:-1]]))
            log_p = np.asarray(jax.nn.log_softmax(logits[0]))
            plain = sum(log_p[t - 1, whole[t]] for t in range(len(whole) - tail, len(whole)))
            np.testing.assert_allclose(logprob, plain, atol=1e-4)


def test_a_run_on_a_file_has_no_facts(run):
    on_file = dataclasses.replace(run.config, data=dataclasses.replace(run.config.data, path="x.txt"))
    with pytest.raises(UserError, match="carry no facts"):
        facts.check_embedded(types.SimpleNamespace(config=on_file, folder=run.folder))


def test_asking_says_that_it_begins_and_counts_every_answer(run, tmp_path, capsys):
    folder = RunFolder(tmp_path)
    folder.data.write_text('{"fingerprint": "f", "tokenizer_sha256": "t"}')
    asked = types.SimpleNamespace(**vars(run) | {"folder": folder, "step": 3})
    row = facts.ask(asked, 3, rich.console.Console())
    assert row["metrics"]["stories"] == 3 and (tmp_path / "eval" / "facts.json").is_file()
    probes, counted = list(questions.probes(stories(3, 0, "valid"))), []
    answers = sum(len(probe.candidates) for probe in probes)
    printed = capsys.readouterr()
    assert re.search(r"Recalled from >=50 words before|No fact was stated >=50 words", " ".join(printed.out.split()))
    said = printed.err  # in a pipe it is this line alone
    assert said == f"Asking {folder.name} {len(probes)} fact questions twice: {2 * answers:,} answers to score\n"
    list(facts.logprob_fn(run, counted.append)(probes))
    assert sum(counted) == answers


def bucket(accuracy: float, n: int = 40, kind: str = "all", chance: float = 0.2) -> dict:
    return {"kind": kind, "distance": questions.FAR, "n": n, "accuracy": accuracy, "chance": chance}


@pytest.mark.parametrize(
    ("whole", "short", "says"),
    [
        (
            bucket(0.94),
            bucket(0.25),
            r"0 words before: 94% of 40 answers \(25% from the last 20 words alone, or by guessing\)\.$",
        ),
        (bucket(0.18), bucket(0.26), r"18% of 40 answers \(26% from .* has not learned to recall yet"),
        (bucket(0.29), bucket(0.10), r"29% of 40 answers \(20% from .* has not learned to recall yet"),
        (bucket(math.nan, n=0), bucket(math.nan, n=0), "ask about more stories"),
    ],
)
def test_the_table_of_facts_ends_with_what_it_says(whole, short, says):
    rows = [[bucket(0.9, kind="owner"), row] for row in (whole, short)]
    assert re.search(says, facts._verdict(*rows))


def test_batches_are_of_evaluations_size_and_of_few_widths(run):
    seen = []

    def eval_step(variables, batch):
        assert variables is run.variables
        seen.append(batch["tokens"].shape)
        return np.zeros((batch["tokens"].shape[0], batch["tokens"].shape[1] - 1), np.float32)

    config = dataclasses.replace(run.config, eval=dataclasses.replace(run.config.eval, batch_size=48))
    other = types.SimpleNamespace(**vars(run) | {"config": config})
    probes = list(questions.probes(stories(12, 0, "valid")))
    list(facts.logprob_fn(other, eval_step=eval_step)(probes))
    assert len(seen) == -(-sum(len(probe.candidates) for probe in probes) // 48)
    assert {shape[0] for shape in seen} == {48} and len(set(seen)) <= 2


@pytest.mark.parametrize(
    ("longest", "padded"),
    [
        ([30] * 8 + [65] * 3 + [129] * 9 + [300], [64] * 8 + [256] * 12 + [400]),
        ([30, 64, 65, 90, 200], [256] * 5),  # few of each: all take the widest
        ([30] * 9 + [390] * 2, [64] * 9 + [400] * 2),
        ([10], [64]),
    ],
)
def test_a_width_of_few_batches_is_left_to_the_next(longest, padded):
    assert facts._widths(longest, limit=400) == padded
