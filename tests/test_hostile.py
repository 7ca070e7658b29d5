"""Hostile input: whatever a file or a flag holds, the answer is a value or a UserError, never another exception.

The counts are small here; `MLA_JAX_FUZZ=5000 pytest tests/test_hostile.py` tries harder (docs/reliability.md).
"""

import ast
import gzip
import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mla_jax import config as config_lib
from mla_jax import config_files, runs
from mla_jax.data.readers import Source
from mla_jax.data.tokenizer import Tokenizer, train_tokenizer
from mla_jax.errors import UserError
from mla_jax.judge import rubric
from mla_jax.rows import read_rows

REPOSITORY = Path(__file__).resolve().parents[1]
GOLDEN = Path(__file__).parent / "golden"
often = settings(
    max_examples=int(os.environ.get("MLA_JAX_FUZZ", "60")),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4),
    max_leaves=8,
)


def mutated(draw: Any, content: bytes) -> bytes:
    """`content` with a few bytes changed, cut out or put in."""
    data = bytearray(content)
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, max(0, len(data) - 1)))
        kind = draw(st.sampled_from(["flip", "cut", "insert"]))
        if kind == "flip" and data:
            data[place] ^= 1 << draw(st.integers(0, 7))
        elif kind == "cut":
            del data[place : place + draw(st.integers(1, 200))]
        else:
            data[place:place] = draw(st.binary(min_size=1, max_size=30))
    return bytes(data)


SMOKE = config_files.load_config_dict("smoke")
KNOBS = ["model.d_model", "optim.learning_rate", "sample.prompts", "checkpoint.keep_steps", "data.path", "train.seed"]

# What would run code, or could, were it given data from a stranger.
FORBIDDEN_CALLS = {"eval", "exec", "compile", "__import__"}
FORBIDDEN_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve", "joblib"}
FORBIDDEN_ATTRIBUTES = {("torch", "load"), ("os", "system"), ("os", "popen"), ("yaml", "load"), ("np", "load")}


def findings(source: str) -> list[str]:
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call):
            name = node.func
            if isinstance(name, ast.Name) and name.id in FORBIDDEN_CALLS:
                found.append(f"{name.id}() in line {node.lineno}")
            if isinstance(name, ast.Attribute) and (getattr(name.value, "id", ""), name.attr) in FORBIDDEN_ATTRIBUTES:
                found.append(f"{name.value.id}.{name.attr}() in line {node.lineno}")
            for keyword in node.keywords:
                if keyword.arg in ("shell", "allow_pickle", "trust_remote_code") and getattr(
                    keyword.value, "value", True
                ):
                    found.append(f"{keyword.arg}= in line {node.lineno}")
        modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        modules += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        found += [f"import {m}" for m in modules if m.split(".")[0] in FORBIDDEN_MODULES]
    return found


@pytest.mark.parametrize("source", ["eval('1')", "import pickle", "from pickle import load", "torch.load('x')"])
def test_the_search_finds_what_it_is_for(source: str) -> None:
    assert findings(source)


def test_no_data_is_ever_executed_or_unpickled() -> None:
    sources = [*REPOSITORY.glob("mla_jax/**/*.py"), *REPOSITORY.glob("launch/**/*.py")]
    assert len(sources) > 50
    found = {str(p.relative_to(REPOSITORY)): findings(p.read_text(encoding="utf-8")) for p in sources}
    assert {name: lines for name, lines in found.items() if lines} == {}


@often
@given(knob=st.text(max_size=30), known=st.sampled_from(KNOBS), value=json_values)
def test_any_override_is_a_value_or_a_sentence(knob: str, known: str, value: Any) -> None:
    for name in (knob, f"model.{knob}", known):
        try:
            config_lib.from_config_dict(
                config_files.apply_overrides(SMOKE.copy_and_resolve_references(), {name: value})
            )
        except UserError as error:
            assert "\n" not in str(error)


@often
@given(data=st.data())
def test_any_config_json_is_a_config_or_a_sentence(data: st.DataObject) -> None:
    text = mutated(data.draw, (GOLDEN / "config_format1.json").read_bytes()).decode("utf-8", "replace")
    try:
        config_lib.loads(text, "x/config.json")
    except UserError as error:
        assert str(error).startswith("x/config.json")


@often
@given(section=st.sampled_from(["model", "data", "train", "sample", "judge", "checkpoint"]), value=json_values)
def test_any_value_in_a_config_json_is_a_config_or_a_sentence(section: str, value: Any) -> None:
    stored = json.loads((GOLDEN / "config_format2.json").read_text(encoding="utf-8"))
    for name in list(stored["config"][section])[:6]:
        changed = json.loads(json.dumps(stored))
        changed["config"][section][name] = value
        try:
            config_lib.loads(json.dumps(changed), "x/config.json")
        except UserError as error:
            assert str(error).startswith("x/config.json")


@often
@given(data=st.data())
def test_any_data_json_and_metrics_are_read_or_refused(data: st.DataObject, tmp_path: Path) -> None:
    folder = runs.RunFolder(tmp_path)
    text = b'{"fingerprint": "ab", "tokenizer_sha256": "cd", "stats": {"a": 1}, "openings": ["x"]}'
    folder.data.write_bytes(mutated(data.draw, text))
    try:
        assert isinstance(runs.read_data(folder)["fingerprint"], str)
    except UserError as error:
        assert "data.json" in str(error)
    rows = b'{"step": 1, "kind": "train", "loss": 2.0}\n{"step": 2, "kind": "eval", "loss": 1.0}\n'
    folder.metrics.write_bytes(mutated(data.draw, rows))
    assert isinstance(read_rows(folder.metrics), list)


@pytest.fixture(scope="module")
def tokenizer_bytes() -> bytes:
    return train_tokenizer(iter(["the little fox found an old key and ran home to her mother. "] * 50), 300)


@often
@given(data=st.data())
def test_any_tokenizer_file_is_read_or_refused(data: st.DataObject, tmp_path: Path, tokenizer_bytes: bytes) -> None:
    path = tmp_path / "tokenizer.model"
    path.write_bytes(mutated(data.draw, tokenizer_bytes))
    try:
        tokenizer = Tokenizer.load(path)
        assert isinstance(tokenizer.decode(tokenizer.encode("the fox")), str)
    except UserError as error:
        assert "\n" not in str(error)


@often
@given(data=st.data(), invalid_utf8=st.sampled_from(["refuse", "replace"]))
@pytest.mark.parametrize("suffix", [".txt", ".jsonl", ".txt.gz"])
def test_any_corpus_file_is_read_or_refused(
    data: st.DataObject, tmp_path: Path, suffix: str, invalid_utf8: str
) -> None:
    text = (
        b'{"text": "once upon a time"}\n{"text": "the end \xc3\xa9"}\n'
        if suffix == ".jsonl"
        else (b"once upon a time\n<|endoftext|>\nthe end \xc3\xa9\n<|endoftext|>\n")
    )
    content = gzip.compress(text) if suffix.endswith(".gz") else text
    path = tmp_path / f"stories{suffix}"
    path.write_bytes(mutated(data.draw, content))
    try:
        for story in Source(path, "data.path", invalid_utf8).stories():
            assert isinstance(story, str)
    except UserError as error:
        assert "stories" in str(error) and "\n" not in str(error)


@often
@given(
    text=st.text(max_size=200)
    | st.fixed_dictionaries(
        {},
        optional={
            name: json_values | st.integers(1, 10) | st.integers(min_value=10**400)
            for name in ("reason", "winner", "grammar", "creativity", "consistency", "coherence", "age_group")
        },
    ).map(json.dumps),
    pairwise=st.booleans(),
)
def test_any_judge_reply_is_a_judgement_or_a_reason(text: str, pairwise: bool) -> None:
    for name in rubric.RUBRICS:
        try:
            rubric.parse_reply(text, rubric.get_rubric(name), pairwise)
        except rubric.ReplyError as error:
            assert str(error)
