"""mla_jax.train.resume: which changes a resumed run may make, and what starting from other weights needs."""

from typing import Any

import jax.numpy as jnp
import pytest
from knobs import with_knobs
from tiny import tiny_config

from mla_jax import config as config_lib
from mla_jax.errors import UserError
from mla_jax.train.resume import check_resumable, check_same_shapes, check_steps, differences, flatten

SAVED = tiny_config("mla_rope")
ALLOWED = {
    "train.steps": 5000,
    "train.microbatches": 2,
    "train.log_every": 3,
    "train.eval_every": 7,
    "train.on_nonfinite": "skip",
    "train.bad_loss": 20.0,
    "train.bad_grad_norm": 100.0,
    "train.tensorboard": False,
    "optim.learning_rate": 0.5,
    "optim.warmup_steps": 3,
    "optim.decay_steps": 777,
    "optim.final_fraction": 0.5,
    "optim.weight_decay": 0.5,
    "optim.clip_norm": 0.5,
    "eval.batch_size": 3,
    "checkpoint.every": 9,
    "checkpoint.keep_latest": 9,
    "checkpoint.keep_steps": (4,),
    "sample.top_k": 9,
    "sample.prompts": ("x",),
    "model.dropout": 0.25,
    "model.scan_layers": True,
    "model.dtype": "float32",
    "model.attention_impl": "xla",
    "data.path": "elsewhere/the-same-stories.txt",  # its fingerprint is what must stay
    "data.cache_dir": "elsewhere",
    "data.threads": 3,
    "init_from": "runs/other",
}
REFUSED = {
    "model.n_layers": 3,
    "model.d_model": 64,
    "model.n_heads": 2,
    "model.head_dim": 16,
    "model.vocab_size": 80,
    "model.max_len": 32,
    "model.kv_lora_rank": 8,
    "model.q_lora_rank": 8,
    "model.qk_rope_head_dim": 2,
    "model.v_head_dim": 4,
    "model.rope_theta": 500.0,
    "model.qk_norm": True,
    "model.block": "gpt",
    "model.d_ff": 32,
    "model.position": "none",
    "train.batch_size": 32,
    "train.seq_len": 8,
    "train.seed": 1,
    "data.document_mask": True,
    "data.seed": 1,
    "data.stories": 5,
    "data.valid_fraction": 0.2,
    "tokenizer.vocab_size": 300,
    "optim.beta1": 0.5,
    "optim.beta2": 0.5,
    "optim.eps": 0.5,
}


def changed(**knobs: Any) -> config_lib.Config:
    if knobs.get("model.position") == "none":
        knobs |= {"model.qk_rope_head_dim": 0}
    return config_lib.replace(SAVED, **knobs)


def test_nothing_changed() -> None:
    assert check_resumable(SAVED, SAVED, "runs/x") == []
    assert set(ALLOWED) | set(REFUSED) <= set(flatten(SAVED))


@pytest.mark.parametrize("knob", ALLOWED)
def test_speed_schedule_and_reports_may_change_and_are_logged(knob: str) -> None:
    wanted = changed(**{knob: ALLOWED[knob]})
    old, new = flatten(SAVED)[knob], ALLOWED[knob]
    assert check_resumable(SAVED, wanted, "runs/x") == [f"{knob}: {old!r} -> {new!r}"]


@pytest.mark.parametrize("knob", REFUSED)
def test_what_weights_and_data_mean_may_not(knob: str) -> None:
    with pytest.raises(UserError) as error:
        check_resumable(SAVED, changed(**{knob: REFUSED[knob]}), "runs/x")
    text = str(error.value)
    assert f"{knob} (was {flatten(SAVED)[knob]!r}, now {REFUSED[knob]!r})" in text
    assert "'runs/x'" in text and "another --workdir" in text


def test_every_refused_difference_is_named_and_no_allowed_one() -> None:
    wanted = changed(**{"model.n_layers": 3, "train.seed": 4, "train.steps": 9, "optim.decay_steps": 9999})
    with pytest.raises(UserError) as error:
        check_resumable(SAVED, wanted, "runs/x")
    assert "model.n_layers (was 2, now 3), train.seed (was 0, now 4)" in str(error.value)
    assert "train.steps" not in str(error.value)


def test_another_variant_is_refused_with_its_differences() -> None:
    with pytest.raises(UserError) as error:
        check_resumable(SAVED, tiny_config("mha"), "runs/x")
    for words in ("model.attention (was 'mla', now 'mha')", "model.position (was 'rope', now 'learned')"):
        assert words in str(error.value)


FORGOTTEN = [  # what the run was made with, what went on without it, what explains all that differs, how much follows
    ({"model.attention": "gqa", "model.n_kv_heads": 2}, ["model.attention", "model.n_kv_heads"], 7),
    ({"model.attention": "mha"}, ["model.attention"], 8),
    ({"model.latent": "per_head", "model.kv_lora_rank": 3}, ["model.latent", "model.kv_lora_rank"], 1),
    ({"model.rope_placement": "decompressed"}, ["model.rope_placement"], 1),
    ({"model.d_model": 64}, ["model.d_model"], 6),
    ({"model.kv_lora_rank": 5}, ["model.kv_lora_rank"], 0),
]


@pytest.mark.parametrize("forgotten_in", ["the resumption", "the start"])
@pytest.mark.parametrize(("flags", "causes", "follow"), FORGOTTEN)
def test_a_forgotten_flag_is_named_before_what_follows_from_it(
    flags: dict[str, Any], causes: list[str], follow: int, forgotten_in: str
) -> None:
    base = {"model.n_layers": 2, "model.d_model": 32, "model.n_heads": 4}
    pair = [config_lib.from_dict(with_knobs(**(base | more))) for more in (flags, {})]
    saved, wanted = pair if forgotten_in == "the resumption" else reversed(pair)
    assert len(differences(saved, wanted)) == len(causes) + follow
    with pytest.raises(UserError) as error:
        check_resumable(saved, wanted, "runs/x")
    old, new = flatten(saved), flatten(wanted)
    listed = ", ".join(f"{name} (was {old[name]!r}, now {new[name]!r})" for name in causes)
    assert f"cannot be resumed with another {listed}" in str(error.value)
    assert str(error.value).count("was") == len(causes)
    assert f" and {follow - 2} more follow: " in str(error.value) or follow <= 2
    assert (", from which " in str(error.value)) == (follow > 0)
    remedy = " ".join(f"--config.{name}={old[name]}" for name in causes)
    assert f": give {remedy} as before, or use another --workdir." in str(error.value)
    given = {} if forgotten_in == "the resumption" else flags
    again = config_lib.from_dict(with_knobs(**(base | given | {name: old[name] for name in causes})))
    assert check_resumable(saved, again, "runs/x") == []  # the remedy is one


def test_flags_of_the_remedy_can_be_pasted_and_are_few() -> None:
    with pytest.raises(UserError, match=r"give '--config\.data\.text_field=the story' as before, or"):
        check_resumable(config_lib.replace(SAVED, **{"data.text_field": "the story"}), SAVED, "runs/x")
    many = {"model.n_layers": 3, "train.seed": 4, "train.batch_size": 8, "data.seed": 1, "optim.beta1": 0.5}
    with pytest.raises(UserError, match=r"\(was 0\.9, now 0\.5\): give the old values, or use another --workdir"):
        check_resumable(SAVED, changed(**many), "runs/x")


def test_fewer_steps_than_were_done_are_refused_unless_it_is_finished() -> None:
    """The reports would be of weights from the middle of a longer schedule."""
    fewer = config_lib.replace(SAVED, **{"train.steps": 5})
    with pytest.raises(UserError, match=r"train.steps is 5, but this run stands at step 6 .* give at least 6"):
        check_steps(fewer, 6, finished=False)
    check_steps(fewer, 6, finished=True)  # which is said, and changes nothing
    check_steps(fewer, 5, finished=False)


def test_differences_are_name_old_new() -> None:
    assert differences(SAVED, changed(**{"train.steps": 3, "optim.decay_steps": 2000, "optim.warmup_steps": 1})) == [
        ("train.steps", SAVED.train.steps, 3),
        ("optim.warmup_steps", SAVED.optim.warmup_steps, 1),
    ]


def test_same_shapes_pass_and_others_are_named() -> None:
    def tree(*shape: int, extra: bool = False) -> dict[str, Any]:
        leaves = {"layer_0": {"w_q": jnp.zeros(shape), "w_o": jnp.zeros((2, 2))}}
        return leaves | ({"bias": jnp.zeros(1)} if extra else {})

    check_same_shapes("runs/y", tree(4, 2), tree(4, 2))
    with pytest.raises(UserError) as error:
        check_same_shapes("runs/y", tree(4, 2), tree(4, 3, extra=True))
    text = str(error.value)
    assert "init_from is 'runs/y'" in text
    assert "bias absent instead of (1,), layer_0/w_q (4, 2) instead of (4, 3)" in text
    assert "w_o" not in text


def test_a_long_list_of_shapes_is_cut() -> None:
    with pytest.raises(UserError, match=r"and 6 more"):
        check_same_shapes("r", {f"w_{i}": jnp.zeros(1) for i in range(10)}, {f"w_{i}": jnp.zeros(2) for i in range(10)})
