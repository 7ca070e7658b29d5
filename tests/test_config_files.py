"""Finding, running and overriding config files."""

import re
from pathlib import Path

import pytest
from ml_collections import ConfigDict
from tiny import NAMED, SIZES

from mla_jax import config_files
from mla_jax.config_files import apply_overrides, base_config, find, load_config, load_config_dict, names
from mla_jax.errors import UserError


def write(path: Path, body: str) -> str:
    path.write_text(body, encoding="utf-8")
    return str(path)


def test_the_named_configs_are_all_there() -> None:
    assert set(NAMED) | {"base", "smoke", "quickstart"} <= set(names())


@pytest.mark.parametrize("name", [n for n in names()])
def test_every_named_config_loads_and_its_docstring_tells_the_command(name: str) -> None:
    config = load_config(name)
    assert config == load_config(str(config_files.config_dir() / f"{name}.py"))
    text = (config_files.config_dir() / f"{name}.py").read_text(encoding="utf-8")
    assert re.search(rf"python -m mla_jax.main --config configs/{name}.py\S* --workdir", text)


@pytest.mark.parametrize("name", [n for n in names() if n.startswith("moe_")])
def test_figures_in_the_configs_of_experts_stand_on_the_pages_that_they_name(name: str) -> None:
    text = (config_files.config_dir() / f"{name}.py").read_text(encoding="utf-8")
    assert "not measured yet" not in text
    pages = re.findall(r"docs/results/[\w/]+\.md", text)
    found = "".join((config_files.config_dir().parent / page).read_text(encoding="utf-8") for page in pages)
    for figure in re.findall(r"\d\.\d{4} ± \d\.\d{4}|\d+\.\d ms|1\.\d\d times", text):
        assert figure.replace(" times", "x") in found, figure


@pytest.mark.parametrize("name", NAMED)
def test_every_size_is_one_argument_away(name: str) -> None:
    widths = [load_config(f"{name}:{size}").model.d_model for size in SIZES]
    layers = [load_config(f"{name}:{size}").model.n_layers for size in SIZES]
    assert widths == [256, 512, 512, 768, 1024]
    assert layers == [6, 6, 9, 12, 12]
    assert load_config(name) == load_config(f"{name}:m")


def test_at_every_size_the_latent_is_half_the_width_and_the_rotary_key_half_a_head() -> None:
    for size in SIZES:
        model = load_config(f"mla_rope:{size}").model
        assert model.kv_lora_rank == model.d_model // 2
        assert model.qk_rope_head_dim == model.d_model // model.n_heads // 2
        assert load_config(f"mla_rope_paper_b:{size}").model.qk_rope_head_dim == model.head_dim
        assert load_config(f"mla_per_head:{size}").model.kv_lora_rank == model.head_dim // 2


def test_overrides_are_dotted_knobs() -> None:
    config = load_config("mla_rope", **{"train.steps": 100, "optim.warmup_steps": 10, "checkpoint.keep_steps": [5, 7]})
    assert (config.train.steps, config.optim.decay_steps, config.checkpoint.keep_steps) == (100, 100, (5, 7))


def test_an_override_of_another_type_gets_the_sentence_of_the_bridge() -> None:
    with pytest.raises(UserError, match=r"^train.steps is '100'; it must be of type int\.$"):
        load_config("mla_rope", **{"train.steps": "100"})
    assert load_config("mla_rope", **{"optim.learning_rate": 1}).optim.learning_rate == 1.0


def test_the_loaded_config_dict_is_locked() -> None:
    config = load_config_dict("smoke")
    with pytest.raises((KeyError, AttributeError)):
        config.new_knob = 1
    assert isinstance(base_config("s"), ConfigDict)


def test_two_loads_do_not_share_values() -> None:
    first = load_config_dict("smoke")
    apply_overrides(first, {"train.steps": 1})
    assert load_config_dict("smoke").train.steps == 20


def test_a_colon_splits_name_and_size() -> None:
    assert find("mla_rope:l") == (config_files.config_dir() / "mla_rope.py", "l")
    assert find("mla_rope") == (config_files.config_dir() / "mla_rope.py", None)


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        ({"train.stpes": 1}, "(did you mean train.steps?)"),
        ({"steps": 1}, "is not a knob"),
        ({"train": 1}, "is a section, not a knob"),
        ({"train.steps.x": 1}, "--config.train.steps.x is not a knob"),
        ({"modle.d_model": 1}, "(did you mean model.d_model?)"),
        ({"train.learning_rate": 1}, "(did you mean optim.learning_rate?)"),
        ({"optim.lr": 1}, "(did you mean optim.learning_rate?)"),
        ({"": 1}, "is not a knob"),
    ],
)
def test_an_override_of_no_knob_is_refused(overrides: dict, says: str) -> None:
    with pytest.raises(UserError) as caught:
        load_config("smoke", **overrides)
    assert says in str(caught.value)
    assert str(caught.value).endswith(".")


@pytest.mark.parametrize(
    ("knob", "hint"),
    [
        ("common.train.steps", " (did you mean tiers.grid.set.train.steps or tiers.headline.set.train.steps?)"),
        ("train.steps", " (did you mean tiers.grid.set.train.steps or tiers.headline.set.train.steps?)"),
        ("data.path", " (did you mean common.data.path?)"),
        ("common.data.pth", " (did you mean common.data.path?)"),
        ("refrence", " (did you mean reference?)"),
        ("common.train.stepz", ""),
        ("nope", ""),
        ("common.model.kv_lora_rank.x", ""),
        ("", ""),
    ],
)
def test_a_study_is_told_what_its_command_line_can_set(knob: str, hint: str) -> None:
    with pytest.raises(UserError) as caught:
        config_files.check_knob(load_config_dict("study_smoke"), knob)
    assert str(caught.value).startswith(f"--config.{knob} is no setting of a study{hint}: configs/study_base.py")
    config_files.check_knob(load_config_dict("study_smoke"), "common.data.path")
    config_files.check_knob(load_config_dict("study_smoke"), "tiers.grid.set.train.steps")


def test_a_file_that_is_not_there_may_be_one_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "mla_rope.py").touch()
    monkeypatch.chdir(tmp_path)
    for given, near in (
        ("configs/mla_rop.py", " (did you mean configs/mla_rope.py?)"),
        (f"{tmp_path}/configs/mla_rop.py:m", f" (did you mean {tmp_path}/configs/mla_rope.py?)"),
        ("configs/far_from_it.py", ""),
        ("nowhere/mla_rop.py", ""),
    ):
        with pytest.raises(UserError) as caught:
            load_config(given)
        assert f"but there is no such file{near}: give a path" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("mla_rop", "(did you mean mla_rope?)"),
        ("nothing_like_it", "use a path to a .py file or one of base,"),
        ("nothing_like_it", "smoke, or with --mode study of study_muon,"),
        ("configs/absent.py", "there is no such file"),
        ("absent.py:m", "there is no such file"),
        ("mla_rope:xxl", "is not one of xs, s, m, l, xl"),
        ("mla_rope:", "is not one of xs, s, m, l, xl"),
        ("smoke:m", "takes no argument"),
        ("", ""),
    ],
)
def test_a_name_that_leads_nowhere_is_refused(name: str, says: str) -> None:
    with pytest.raises(UserError) as caught:
        load_config(name)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("def get_config(:", "SyntaxError"),
        ("def get_config(): return {}", "returned dict; return a ConfigDict"),
        ("def get_config(): return None", "returned NoneType"),
        ("import not_a_module", "ModuleNotFoundError"),
        ("def get_config(): raise RuntimeError('no\\nluck')", "line 1: RuntimeError: no luck."),
        ("x = 1", "which has no get_config(): define one"),
        (
            "from mla_jax.config_files import base_config\ndef get_config():\n    c = base_config()\n"
            "    c.model.atention = 'mha'\n    return c",
            ", line 4: atention is not a knob of that section (did you mean attention?): base.py, or of a study",
        ),
        (
            "from mla_jax.config_files import base_config\ndef get_config():\n    c = base_config()\n"
            "    c.model.zzzzqqq = 1\n    return c",
            "zzzzqqq is not a knob of that section: base.py, or",
        ),
        (
            "from mla_jax.config_files import base_config\ndef get_config():\n    c = base_config()\n"
            "    return c.model.atention",
            ", line 4: atention is not a knob of that section (did you mean attention?): base.py",
        ),
    ],
)
def test_a_config_file_that_does_not_work_is_one_sentence(tmp_path: Path, body: str, says: str) -> None:
    with pytest.raises(UserError) as caught:
        load_config(write(tmp_path / "mine.py", body))
    assert says in str(caught.value)
    assert "mine.py" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_line_is_told_of_a_file_beside_one_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "mine.py", "\ndef get_config():\n    raise RuntimeError('no luck.')")
    monkeypatch.chdir(tmp_path)
    for name in ("mine.py", "./mine.py"):
        with pytest.raises(UserError, match=rf"^--config {re.escape(name)}, line 3: RuntimeError: no luck\.$"):
            load_config(name)


def test_a_path_is_as_good_as_its_text(tmp_path: Path) -> None:
    assert load_config(Path("smoke")) == load_config("smoke")
    mine = write(tmp_path / "mine.py", "from mla_jax.config_files import load_config_dict\n"
                 "def get_config(): return load_config_dict('smoke')")  # fmt: skip
    assert load_config(Path(mine)) == load_config("smoke")


def test_a_file_that_is_not_python_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"give one that ends in \.py"):
        load_config(write(tmp_path / "mine.txt", "x"))


def test_a_config_of_ones_own_starts_from_base(tmp_path: Path) -> None:
    body = (
        "from mla_jax.config_files import base_config\n"
        "def get_config(size='s'):\n"
        "    c = base_config(size)\n"
        "    c.train.steps = 7\n"
        "    c.optim.warmup_steps = 2\n"
        "    return c\n"
    )
    path = write(tmp_path / "my own.py", body)
    assert load_config(path).train.steps == 7
    assert load_config(f"{path}:l").model.d_model == 768


def test_base_sets_every_knob_once() -> None:
    text = (config_files.config_dir() / "base.py").read_text(encoding="utf-8")
    assigned = re.findall(r"^    [a-z]\.(\w+) = (?!.*ConfigDict)", text, flags=re.MULTILINE)
    base = load_config_dict("base")
    knobs = [knob for name in base for knob in (base[name] if isinstance(base[name], ConfigDict) else [name])]
    assert sorted(assigned) == sorted(knobs)
