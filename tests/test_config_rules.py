"""What values of knobs may be, alone and together, in a sentence each; what is derived from them."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from knobs import BASE, with_knobs

from mla_jax.config import dumps, from_dict, loads
from mla_jax.config_files import load_config
from mla_jax.errors import UserError

GOLDEN = Path(__file__).parent / "golden"


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


UNREAD = {  # every knob of experts, with another value than base.py's
    "n_routed_experts": 8,
    "n_shared_experts": 1,
    "top_k": 4,
    "d_expert": 64,
    "first_k_dense": 1,
    "router_score": "softmax",
    "router_renormalize": False,
    "routed_scaling_factor": 2.5,
    "router_bias_rate": 0.0,
    "router_bias_rule": "proportional",
    "router_aux_weight": 0.01,
    "router_sequence_weight": 1e-4,
    "router_z_weight": 1e-3,
    "moe_impl": "grouped",
    "grouped_impl": "xla",
}


@pytest.mark.parametrize("name", UNREAD)
def test_a_knob_of_experts_that_a_dense_model_would_not_read_is_refused(name: str) -> None:
    with pytest.raises(UserError) as caught:
        load_config("mha", **{f"model.{name}": UNREAD[name]})
    sentence = f"model.{name} is {UNREAD[name]!r}; ffn=dense has no experts: set it to {BASE['model'][name]!r}, or "
    assert str(caught.value) == f"{sentence}--config.model.ffn=moe."
    assert load_config("mha", **{f"model.{name}": BASE["model"][name]}) == load_config("mha")


def test_every_knob_of_experts_is_among_those() -> None:
    assert set(UNREAD) == {name for name in BASE["model"] if re.search(r"expert|rout|moe|top_k|first_k|grouped", name)}
    knobs = {f"model.{name}": value for name, value in UNREAD.items()}
    assert load_config("mha", **knobs, **{"model.ffn": "moe"}).model.router_score == "softmax"


def test_a_stored_dense_run_with_knobs_that_it_never_read_goes_on_without_them() -> None:
    """They were not refused once; what was refused always is damage."""
    plain = load_config("mha")
    stored = json.loads(dumps(plain))
    forgiven = ("router_score", "router_renormalize", "routed_scaling_factor", "router_bias_rate", "router_bias_rule")
    stored["config"]["model"] |= {name: UNREAD[name] for name in (*forgiven, "moe_impl", "grouped_impl")}
    assert loads(json.dumps(stored)) == plain
    stored["config"]["model"]["top_k"] = 4
    with pytest.raises(UserError, match=r"^x: model.top_k is 4; ffn=dense has no experts"):
        loads(json.dumps(stored), "x")
    experts = json.loads(dumps(load_config("mha", **EXPERTS, **{"model.router_score": "softmax"})))
    assert loads(json.dumps(experts)).model.router_score == "softmax"


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
