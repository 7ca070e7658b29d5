"""mla_jax.train.startup: the report names what was chosen, not what follows from it."""

from mla_jax.config_files import load_config
from mla_jax.train.startup import chosen


def test_base_differs_from_itself_in_nothing() -> None:
    assert chosen(load_config("base")) == []


def test_what_follows_from_a_choice_is_left_out() -> None:
    assert chosen(load_config("base", **{"model.d_model": 256, "train.steps": 30})) == [
        "model.d_model=256",
        "train.steps=30",
    ]


def test_a_choice_of_a_derived_knob_is_named() -> None:
    assert chosen(load_config("mla_rope", **{"model.kv_lora_rank": 128})) == ["model.kv_lora_rank=128"]


def test_how_many_stories_are_embedded_goes_unsaid_where_a_file_is_read() -> None:
    embedded = {"data.stories": 12000, "data.valid_stories": 7, "data.seed": 3}
    assert sorted(chosen(load_config("base", **embedded))) == [
        f"{name}={value}" for name, value in sorted(embedded.items())
    ]
    assert chosen(load_config("base", **embedded, **{"data.path": "x.txt"})) == ["data.path='x.txt'"]
