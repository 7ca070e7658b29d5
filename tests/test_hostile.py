"""Hostile input: whatever a file or a flag holds, the answer is a value or a UserError, never another exception.

The counts are small here; `MLA_JAX_FUZZ=5000 pytest tests/test_hostile.py` tries harder (docs/reliability.md).
"""

import ast
import gzip
import json
import os
import shutil
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hf_tools import untrained_run
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny import grid_config

from mla_jax import config as config_lib
from mla_jax import config_files, runs
from mla_jax.data.readers import Source
from mla_jax.data.tokenizer import Tokenizer, train_tokenizer
from mla_jax.errors import UserError
from mla_jax.interop import hf
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


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory, tokenizer_bytes: bytes) -> dict[str, Path]:
    """Small Hugging Face folders of each family, without our manifest, as a stranger would send them."""
    pytest.importorskip("safetensors")
    tokenizer, folders = Tokenizer(tokenizer_bytes), {}
    points = {"deepseek": "joint-decoupled-q_lora-norm_rms", "llama": "gqa-rope", "gpt2": "mha-learned-gpt"}
    for name, point in points.items():
        config = grid_config(point, **{"model.vocab_size": tokenizer.vocab_size})
        run = untrained_run(tmp_path_factory.mktemp("runs") / name, config, tokenizer)
        folders[name] = hf.export(run, tmp_path_factory.mktemp("exports") / name)
        (folders[name] / "mla_jax.json").unlink()
    return folders


def read_hf(folder: Path) -> None:
    """Within 64 MiB of Python's and numpy's memory, whatever sizes the folder claims: it has 100 KiB."""
    tracemalloc.start()
    try:
        hf.load(folder)
    except UserError as error:
        assert "\n" not in str(error) and len(str(error)) < 1500
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 64 * 2**20, f"{peak / 2**20:.0f} MiB"


huge = st.sampled_from([2**24, 2**31, 2**63, 10**400, -1, 0, 1e308, float("nan"), float("inf")])


@pytest.mark.parametrize(
    ("field", "value"),
    [("rms_norm_eps", 10**400), ("rope_theta", -(10**400)), ("architectures", [["LlamaForCausalLM"]])]
    + [("architectures", [{}]), ("num_hidden_layers", 2**24), ("rms_norm_eps", float("nan"))],
)
def test_what_fuzzing_found_in_hugging_face_configs(
    exports: dict[str, Path], tmp_path: Path, field: str, value: Any
) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(exports["llama"], folder)
    content = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(content | {field: value}))
    with pytest.raises(UserError, match="config.json|model.safetensors|tensor"):
        hf.load(folder)
    read_hf(folder)


@often
@given(name=st.sampled_from(["deepseek", "llama", "gpt2"]), data=st.data())
def test_any_hugging_face_config_is_read_or_refused(
    exports: dict[str, Path], tmp_path: Path, name: str, data: st.DataObject
) -> None:
    folder = tmp_path / "copy"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(exports[name], folder)
    path = folder / "config.json"
    content = json.loads(path.read_text())
    for field in data.draw(st.lists(st.sampled_from(sorted(content)), min_size=1, max_size=2, unique=True)):
        content[field] = data.draw(json_values | huge)
    path.write_text(json.dumps(content))
    read_hf(folder)


@often
@given(name=st.sampled_from(["deepseek", "llama", "gpt2"]), data=st.data())
def test_any_hugging_face_weights_are_read_or_refused(
    exports: dict[str, Path], tmp_path: Path, name: str, data: st.DataObject
) -> None:
    """Headers that lie: sizes, names, shapes, offsets and types of tensors as they come, and broken bytes."""
    folder = tmp_path / "copy"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(exports[name], folder)
    path = folder / "model.safetensors"
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header, rest = content[8 : 8 + length], content[8 + length :]
    if data.draw(st.booleans()):
        entries = json.loads(header)
        entry = entries[data.draw(st.sampled_from(sorted(entries)))]
        entry[data.draw(st.sampled_from(["dtype", "shape", "data_offsets"]))] = data.draw(
            json_values | st.lists(huge | st.integers(0, 2**20), max_size=3) | st.sampled_from(["F64", "I8", "BF16"])
        )
        header = json.dumps(entries).encode()
        length = len(header)
    else:
        header = mutated(data.draw, header)
        length = data.draw(st.sampled_from([length, len(header), 2**63, 2**64 - 1, 0]))
    path.write_bytes(length.to_bytes(8, "little") + header + rest)
    read_hf(folder)


@often
@given(index=json_values | st.dictionaries(st.just("weight_map"), json_values, min_size=1))
def test_any_index_of_shards_is_read_or_refused(exports: dict[str, Path], tmp_path: Path, index: Any) -> None:
    folder = tmp_path / "copy"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(exports["llama"], folder)
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    read_hf(folder)
