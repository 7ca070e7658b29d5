"""The bridge: round trips, stored formats, and a sentence for every bad value."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from knobs import BASE, with_knobs

from mla_jax import migrations
from mla_jax.config import Config, dumps, from_config_dict, from_dict, loads, replace
from mla_jax.config_files import load_config, load_config_dict
from mla_jax.errors import UserError

GOLDEN = Path(__file__).parent / "golden"


def leaves(content: dict[str, Any], prefix: str = "") -> list[str]:
    found = []
    for name, value in content.items():
        found += leaves(value, f"{prefix}{name}.") if isinstance(value, dict) else [f"{prefix}{name}"]
    return found


@st.composite
def good_configs(draw: st.DrawFn) -> Config:
    """Configs from all over the space, valid by construction."""
    n_heads, head_dim = draw(st.sampled_from([(1, 8), (2, 4), (4, 6), (8, 16)]))
    attention = draw(st.sampled_from(["mha", "gqa", "mla"]))
    knobs: dict[str, Any] = {
        "model.n_heads": n_heads,
        "model.d_model": n_heads * head_dim,
        "model.n_layers": draw(st.integers(1, 100)),
        "model.attention": attention,
        "model.position": draw(st.sampled_from(["none", "learned", "rope"])),
        "model.qk_norm": draw(st.booleans()),
        "model.block": draw(st.sampled_from(["default", "gpt"])),
        "model.dropout": draw(st.floats(0, 0.9)),
        "model.rope_theta": draw(st.one_of(st.integers(1, 10**6), st.floats(1, 1e6))),
        "model.vocab_size": draw(st.integers(0, 10**6)),
        "optim.learning_rate": draw(st.floats(1e-9, 1)),
        "optim.weight_decay": draw(st.integers(0, 3)),
        "train.seed": draw(st.integers(0, 2**32 - 1)),
        "data.path": draw(st.text(max_size=30)),
        "checkpoint.keep_steps": draw(st.lists(st.integers(1, 10**9), max_size=4)),
        "sample.prompts": draw(st.lists(st.text(max_size=20), max_size=3)),
    }
    if attention == "gqa":
        knobs["model.n_kv_heads"] = draw(st.sampled_from([g for g in range(1, n_heads + 1) if n_heads % g == 0]))
    if attention == "mla":
        latent = draw(st.sampled_from(["joint", "per_head"]))
        knobs |= {
            "model.latent": latent,
            "model.latent_norm": draw(st.sampled_from(["auto", "rms", "none"])),
            "model.rope_placement": draw(st.sampled_from(["decoupled", "decompressed"])),
            "model.kv_lora_rank": draw(st.integers(0, n_heads * head_dim)),
            "model.v_head_dim": draw(st.integers(0, 33)),
        }
        if knobs["model.position"] == "rope" and knobs["model.rope_placement"] == "decoupled":
            knobs["model.qk_rope_head_dim"] = 2 * draw(st.integers(1, 9))  # head_dim/2 may be odd
        if latent == "joint":
            knobs["model.q_lora_rank"] = draw(st.integers(0, n_heads * head_dim))
    return from_dict(with_knobs(**knobs))


@given(good_configs())
def test_dumps_and_loads_are_inverse(config: Config) -> None:
    again = loads(dumps(config))
    assert again == config
    assert again.hash == config.hash
    assert hash(again) == hash(config)  # a Config is a static argument of jit
    json.loads(dumps(config))  # strict readers of JSON, too: no NaN, no Infinity
    assert "NaN" not in dumps(config)


@given(good_configs())
def test_resolving_twice_is_resolving_once(config: Config) -> None:
    assert from_dict(config.to_dict()) == config
    assert replace(config) == config


@settings(max_examples=300)
@given(
    st.sampled_from(leaves(BASE)),
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-(10**6), 10**6),
        st.sampled_from([10**400, -(10**400), 2**63, float("nan"), float("inf"), -float("inf"), -0.0, 1e-320]),
        st.floats(),
        st.text(max_size=8),
        st.lists(st.one_of(st.integers(), st.text(max_size=3)), max_size=3),
        st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
    ),
)
def test_any_value_of_any_knob_is_taken_or_refused_with_a_sentence(knob: str, value: Any) -> None:
    try:
        config = from_dict(with_knobs(**{knob: value}))
    except UserError as error:
        assert str(error).endswith(".")
        assert "\n" not in str(error)
    else:
        assert loads(dumps(config)) == config


@given(
    st.recursive(st.one_of(st.none(), st.integers(), st.text(max_size=5)), lambda inner: st.lists(inner, max_size=3))
)
def test_a_config_that_is_no_dictionary_is_refused(content: Any) -> None:
    with pytest.raises(UserError):
        from_dict(content)
    with pytest.raises(UserError):
        loads(json.dumps(content))


def test_every_knob_of_base_has_a_field_and_every_field_a_knob() -> None:
    assert sorted(leaves(BASE)) == sorted(leaves(load_config("base").to_dict()))


def test_the_dataclasses_declare_no_default() -> None:
    """configs/base.py is the one home of defaults."""
    sections = [Config, *(f.type for f in dataclasses.fields(Config) if dataclasses.is_dataclass(f.type))]
    assert len(sections) >= 9
    for section in sections:
        for field in dataclasses.fields(section):
            assert field.default is dataclasses.MISSING, f"{section.__name__}.{field.name}"
            assert field.default_factory is dataclasses.MISSING, f"{section.__name__}.{field.name}"


def test_a_config_is_frozen() -> None:
    config = load_config("smoke")
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.model.d_model = 8  # type: ignore[misc]


@pytest.mark.parametrize("file_format", range(1, migrations.FORMAT + 1))
def test_a_stored_config_of_each_past_format_loads(file_format: int) -> None:
    """When the format changes: add MIGRATIONS and a new file here; never touch the old ones."""
    path = GOLDEN / f"config_format{file_format}.json"
    stored = json.loads(path.read_text(encoding="utf-8"))
    assert stored["format"] == file_format
    config = loads(path.read_text(encoding="utf-8"), str(path))
    values = config.to_dict()
    for knob in leaves(stored["config"]):  # what the run recorded is what it means today
        section, _, field = knob.rpartition(".")
        was = (stored["config"][section] if section else stored["config"])[field]
        now = (values[section] if section else values)[field]
        assert (list(now) if isinstance(now, tuple) else now) == was, knob
    assert config.model.kv_lora_rank == 256
    assert config.model.q_lora_rank == 96
    assert config.checkpoint.keep_steps == (100, 500)


def test_a_migration_fills_in_what_an_old_run_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    now = migrations.FORMAT
    stored = json.loads((GOLDEN / f"config_format{now}.json").read_text(encoding="utf-8"))
    del stored["config"]["model"]["qk_norm"], stored["config"]["init_from"]
    with pytest.raises(UserError, match=r"^x/config.json: .*missing"):
        loads(json.dumps(stored), "x/config.json")
    monkeypatch.setattr(migrations, "FORMAT", now + 2)
    steps = {now: {"model.qk_norm": True, "train.steps": 1}, now + 1: {"init_from": "runs/a"}}
    monkeypatch.setattr(migrations, "MIGRATIONS", migrations.MIGRATIONS | steps)
    config = loads(json.dumps(stored))
    assert config.model.qk_norm is True
    assert config.init_from == "runs/a"
    assert config.train.steps == 700  # what the run did record stands
    assert json.loads(dumps(config))["format"] == now + 2


def test_an_old_config_of_the_wrong_shape_is_refused() -> None:
    for section in {knob.partition(".")[0] for step in migrations.MIGRATIONS.values() for knob in step}:
        stored = json.loads((GOLDEN / "config_format1.json").read_text(encoding="utf-8"))
        stored["config"][section] = 3
        with pytest.raises(UserError, match=rf"{section} is 3; it must be a section"):
            loads(json.dumps(stored))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        "{}",
        '{"format": 1}',
        '{"format": "1", "config": {}}',
        '{"format": 1, "config": []}',
        '{"format": 1.5, "config": {}}',
        '{"format": 0, "config": {}}',
        '{"format": -3, "config": {}}',
        '{"format": true, "config": {}}',
        "[" * 100_000,
    ],
)
def test_what_is_no_config_json_is_refused(text: str) -> None:
    with pytest.raises(UserError, match=r"^runs/x/config.json is not a config of mla_jax .*: .*\.$"):
        loads(text, "runs/x/config.json")


def test_a_newer_format_is_refused() -> None:
    stored = json.loads(dumps(load_config("smoke")))
    stored["format"] = migrations.FORMAT + 1
    with pytest.raises(UserError, match=rf"format {migrations.FORMAT + 1}, newer than .*: upgrade mla_jax\.$"):
        loads(json.dumps(stored))


def test_an_unknown_knob_suggests_the_nearest() -> None:
    with pytest.raises(UserError, match=r"^model.kv_lora_rnk is not a knob \(did you mean kv_lora_rank\?\)"):
        from_dict(with_knobs(**{"model.kv_lora_rnk": 64}))
    with pytest.raises(UserError, match=r"^modle is not a knob \(did you mean model\?\)"):
        from_dict(with_knobs(modle={}))
    with pytest.raises(UserError, match=r"^model is 3; it must be a section"):
        from_dict(with_knobs(model=3))


def test_a_missing_knob_is_named() -> None:
    content = with_knobs()
    del content["optim"]["beta2"]
    with pytest.raises(UserError, match=r"^optim.beta2 is missing"):
        from_dict(content)


def test_the_hash_names_what_is_computed_not_where() -> None:
    config = load_config("smoke")
    elsewhere = replace(config, **{"data.cache_dir": "x", "data.threads": 7, "sample.seed": 3, "checkpoint.every": 9})
    assert elsewhere.hash == config.hash
    for knob, value in (("model.d_model", 64), ("train.seed", 1), ("optim.beta2", 0.9), ("data.document_mask", True)):
        assert replace(config, **{knob: value}).hash != config.hash, knob


def test_the_bridge_takes_a_config_dict() -> None:
    assert from_config_dict(load_config_dict("mha:s")) == load_config("mha:s")
