"""The bridge: round trips, stored formats, and a sentence for every bad value."""

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mla_jax import migrations
from mla_jax.config import Config, dumps, from_config_dict, from_dict, loads, replace
from mla_jax.config_files import load_config, load_config_dict
from mla_jax.errors import UserError

GOLDEN = Path(__file__).parent / "golden"
BASE = load_config_dict("base").to_dict()


def with_knobs(**dotted: Any) -> dict[str, Any]:
    """configs/base.py as nested dictionaries, with other values, unresolved."""
    content = json.loads(json.dumps(BASE))
    for key, value in dotted.items():
        *sections, field = key.split(".")
        target = content
        for section in sections:
            target = target[section]
        target[field] = value
    return content


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


# knob, value, what the sentence must say besides the knob and the value
BAD = [
    ("model.attention", "mqa", "mha | gqa | mla"),
    ("model.latent", "shared", "joint | per_head"),
    ("model.position", "alibi", "none | learned | rope"),
    ("model.n_routed_experts", 4, "dense"),
    ("model.router_aux_weight", 0.5, "ffn=dense has no experts"),
    ("model.ffn", "mlp", "dense | moe"),
    ("model.d_model", 0, "at least 1"),
    ("model.d_model", 512.0, "type int"),
    ("model.n_layers", -1, "at least 1"),
    ("model.n_heads", 0, "at least 1"),
    ("model.n_heads", True, "type int"),
    ("model.n_heads", 7, "d_model (512)"),
    ("model.n_kv_heads", 2, "mla has no key/value heads"),
    ("model.kv_lora_rank", 513, "d_model (512)"),
    ("model.q_lora_rank", 513, "d_model (512)"),
    ("model.qk_rope_head_dim", 31, "even"),
    ("model.rope_placement", "none", "decoupled | decompressed"),
    ("model.latent", "none", "joint | per_head"),
    ("model.rope_theta", float("nan"), "at least 1"),
    ("model.dropout", 1.0, "between 0 and 0.99"),
    ("model.dropout", "0.1", "type float"),
    ("model.dtype", "float16", "auto | bfloat16 | float32"),
    ("model.qk_norm", "yes", "type bool"),
    ("model.init_std", 0.0, "between"),
    ("data.valid_fraction", 0.9, "between"),
    ("data.invalid_utf8", "ignore", "refuse | replace"),
    ("data.valid_path", "valid.txt", "data.path"),
    ("data.seed", -1, "between 0 and"),
    ("data.seed", 2**32, "between 0 and"),
    ("sample.seed", 2**32, "between 0 and"),
    ("tokenizer.vocab_size", 200, "between 300"),
    ("train.steps", 0, "at least 1"),
    ("train.seq_len", 1024, "model.max_len (512)"),
    ("train.microbatches", 3, "train.batch_size (64)"),
    ("train.seed", 2**32, "between 0 and"),
    ("train.on_nonfinite", "ignore", "stop | skip"),
    ("optim.learning_rate", float("inf"), "between"),
    ("optim.learning_rate", 10**400, ""),
    ("optim.warmup_steps", 2000, "optim.decay_steps (2000)"),
    ("optim.beta2", 1.0, "between"),
    ("checkpoint.keep_steps", 100, "tuple of int"),
    ("checkpoint.keep_steps", [100.5], "type int"),
    ("checkpoint.keep_steps", (-5,), "steps count from 1"),
    ("data.threads", 200_000, "between 1 and 1024"),
    ("model.d_model", 2**61, "between 1 and"),
    ("model.d_model", 2**63, "64 bits"),
    ("model.d_model", 2**63 - 1, "between 1 and"),
    ("sample.prompts", "Once", "tuple of str"),
    ("sample.max_new_tokens", 512, "model.max_len (512)"),
    ("sample.temperature", -0.5, "at least 0"),
]


@pytest.mark.parametrize(("knob", "value", "says"), BAD, ids=[f"{knob}={str(value)[:12]}" for knob, value, _ in BAD])
def test_a_bad_value_is_one_sentence_with_field_value_rule_and_remedy(knob: str, value: Any, says: str) -> None:
    with pytest.raises(UserError) as caught:
        from_dict(with_knobs(**{knob: value}))
    message = str(caught.value)
    assert re.match(rf"{re.escape(knob)}(\[\d\])? is ", message)
    assert str(value[0] if isinstance(value, list) else value)[:20] in message
    assert says in message
    assert message.endswith(".")
    assert "\n" not in message


COMBINATIONS = [
    ({"model.attention": "mha", "model.n_kv_heads": 2}, "model.n_kv_heads"),
    ({"model.attention": "gqa"}, "model.n_kv_heads"),
    ({"model.attention": "gqa", "model.n_kv_heads": 3}, "use 1, 2, 4, 8"),
    ({"model.attention": "mha", "model.kv_lora_rank": 64}, "model.kv_lora_rank"),
    ({"model.attention": "gqa", "model.n_kv_heads": 2, "model.v_head_dim": 64}, "model.v_head_dim"),
    ({"model.attention": "mha", "model.n_heads": 7}, "model.n_heads"),
    ({"model.attention": "mha", "model.n_heads": 8, "model.head_dim": 63}, "model.head_dim"),
    ({"model.latent": "per_head", "model.q_lora_rank": 64}, "model.q_lora_rank"),
    ({"model.position": "learned", "model.qk_rope_head_dim": 32}, "model.qk_rope_head_dim"),
    ({"model.rope_placement": "decompressed", "model.qk_rope_head_dim": 32}, "model.qk_rope_head_dim"),
    ({"model.rope_placement": "decompressed", "model.qk_nope_head_dim": 33}, "model.qk_nope_head_dim"),
    ({"model.d_model": 8, "model.latent": "per_head"}, "model.kv_lora_rank"),  # head_dim 1: rank 0
    ({"model.d_model": 8}, "model.qk_rope_head_dim"),  # head_dim 1: rotary width 0
]


@pytest.mark.parametrize(("knobs", "field"), COMBINATIONS, ids=[",".join(k) for k, _ in COMBINATIONS])
def test_values_that_do_not_go_together_are_refused(knobs: dict[str, Any], field: str) -> None:
    with pytest.raises(UserError) as caught:
        from_dict(with_knobs(**knobs))
    assert field in str(caught.value)
    assert str(caught.value).endswith(".")


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


def test_an_explicit_head_dim_need_not_divide_the_width() -> None:
    """The remedy that the sentence about n_heads offers has to work."""
    config = from_dict(with_knobs(**{"model.attention": "mha", "model.n_heads": 7, "model.head_dim": 64}))
    assert (config.model.n_heads, config.model.head_dim) == (7, 64)


DERIVED = [
    ("mha", {"head_dim": 64, "n_kv_heads": 8, "latent": "none", "kv_lora_rank": 0, "rope_placement": "none"}),
    ("gqa", {"head_dim": 64, "n_kv_heads": 2, "qk_rope_head_dim": 0, "latent_norm": "none"}),
    ("mla", {"kv_lora_rank": 256, "qk_rope_head_dim": 0, "rope_placement": "none", "latent_norm": "rms"}),
    ("mla_rope", {"kv_lora_rank": 256, "qk_nope_head_dim": 64, "qk_rope_head_dim": 32, "v_head_dim": 64}),
    ("mla_rope_paper_b", {"kv_lora_rank": 256, "qk_rope_head_dim": 64}),
    ("mla_per_head", {"kv_lora_rank": 32, "qk_rope_head_dim": 0, "latent_norm": "none"}),
    ("mla_rope:l", {"d_model": 768, "kv_lora_rank": 384, "qk_rope_head_dim": 32, "n_kv_heads": 0}),
    ("mla_rope:xs", {"d_ff": 672, "kv_lora_rank": 128, "qk_rope_head_dim": 16}),
]


@pytest.mark.parametrize(("name", "expected"), DERIVED, ids=[name for name, _ in DERIVED])
def test_derived_values_follow_their_rule(name: str, expected: dict[str, Any]) -> None:
    model = load_config(name).model
    assert {field: getattr(model, field) for field in expected} == expected


EXPERTS = {"model.ffn": "moe", "model.n_routed_experts": 6, "model.top_k": 2, "model.d_expert": 32}


def test_the_rate_of_the_router_bias_follows_the_score() -> None:
    for score, rate in (("sigmoid", 3e-3), ("softmax", 0.012 / 6)):
        config = load_config("mla_rope", **EXPERTS, **{"model.router_score": score})
        assert config.model.router_bias_rate == pytest.approx(rate)
        assert load_config("mla_rope", **EXPERTS, **{"model.router_bias_rate": 0.5}).model.router_bias_rate == 0.5
    assert load_config("mla_rope").model.router_bias_rate == -1  # nothing to steer


@pytest.mark.parametrize(("steps", "warmup"), [(990, 99), (1000, 100), (1009, 100), (100_000, 100), (9, 0)])
def test_the_warm_up_is_a_tenth_and_at_most_100_steps(steps: int, warmup: int) -> None:
    assert load_config("mha", **{"train.steps": steps}).optim.warmup_steps == warmup
    assert load_config("mha", **{"train.steps": 1000, "optim.decay_steps": steps}).optim.warmup_steps == warmup
    assert load_config("mha", **{"train.steps": steps, "optim.warmup_steps": 3}).optim.warmup_steps == 3


@pytest.mark.parametrize(
    ("rows", "batch", "microbatches", "seq_len", "chunks"),
    [
        (0, 64, 1, 512, 0),  # the vocabulary is not known yet
        (2**14, 64, 1, 512, 1),  # 64 * 512 * 2^14 * 2 bytes: 1 GiB, the most that is allowed
        (2**14 + 2, 64, 1, 512, 2),
        (2**14 + 2, 64, 2, 512, 1),
        (50_000, 64, 1, 512, 4),  # 3.05 GiB: 3 does not divide 512
        (50_000, 64, 1, 510, 5),  # 3.04 GiB: more than 3, and 4 does not divide 510
        (2**20, 2**19, 1, 2, 2),  # no divisor is enough: token by token
    ],
)
def test_the_loss_is_cut_where_its_logits_take_more_than_a_gibibyte(
    rows: int, batch: int, microbatches: int, seq_len: int, chunks: int
) -> None:
    knobs = {"model.vocab_size": rows, "train.batch_size": batch, "train.microbatches": microbatches}
    knobs |= {"train.seq_len": seq_len, "model.max_len": 512}
    assert load_config("mha", **knobs, **{"train.loss_chunks": 0}).train.loss_chunks == chunks
    given = next(n for n in range(seq_len, 0, -1) if seq_len % n == 0)
    assert load_config("mha", **knobs, **{"train.loss_chunks": given}).train.loss_chunks == given


@pytest.mark.parametrize(
    ("name", "knobs", "absorbed"),
    [
        ("mla_rope", {}, True),
        ("mla", {}, True),
        ("mla_per_head", {}, False),  # its rotary keys are made after the expansion
        ("mla_rope", {"model.qk_norm": True}, False),
        ("mla_rope", {"model.rope_placement": "decompressed", "model.qk_rope_head_dim": 0}, False),
        ("mha", {}, False),
        ("mha_rope", {}, False),
        ("gqa", {"model.qk_norm": True}, False),
    ],
)
def test_latents_are_absorbed_unless_rotary_or_norm_stand_between(name: str, knobs: dict, absorbed: bool) -> None:
    assert load_config(name, **knobs).model.absorbed is absorbed


def test_layers_of_experts_are_the_last_ones() -> None:
    assert load_config("mha", **{"model.n_layers": 5}).model.n_moe_layers == 0
    for dense in (0, 1, 4):
        config = load_config("mha", **EXPERTS, **{"model.n_layers": 5, "model.first_k_dense": dense})
        assert config.model.n_moe_layers == 5 - dense


def test_the_hash_names_what_is_computed_not_where() -> None:
    config = load_config("smoke")
    elsewhere = replace(config, **{"data.cache_dir": "x", "data.threads": 7, "sample.seed": 3, "checkpoint.every": 9})
    assert elsewhere.hash == config.hash
    for knob, value in (("model.d_model", 64), ("train.seed", 1), ("optim.beta2", 0.9), ("data.document_mask", True)):
        assert replace(config, **{knob: value}).hash != config.hash, knob


def test_the_bridge_takes_a_config_dict() -> None:
    assert from_config_dict(load_config_dict("mha:s")) == load_config("mha:s")
