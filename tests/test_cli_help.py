"""mla_jax.cli_help: what --help prints, on its own, with a config and with a mode."""

import pytest

from mla_jax import cli_flags, cli_help, cli_table, config_files
from mla_jax import main as main_module
from mla_jax.main import main

pytest_plugins = ["run_fixtures", "refusals"]
pytestmark = pytest.mark.usefixtures("run_env")


def help_page(capsys: pytest.CaptureFixture, *arguments: str) -> str:
    with pytest.raises(SystemExit) as exit_:
        main(["mla_jax", *arguments, "--help"])
    assert exit_.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("columns", ["80", "120"])
def test_help_is_two_screens_that_a_newcomer_can_use(capsys, monkeypatch: pytest.MonkeyPatch, columns: str) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    monkeypatch.setenv("LINES", "40")
    text = help_page(capsys)
    lines = text.splitlines()
    assert len(lines) <= 80 and max(map(len, lines)) <= int(columns)
    values = cli_flags.define_flags(["mla_jax"])
    for name in set(values) - {"help", "mode", "flagfile", "undefok"}:
        assert f"--{name}" in text, name
    for mode in cli_table.MODES:
        assert f"\n  {mode} " in text
    base = config_files.load_config("base")
    assert base == config_files.load_config("base:m") and "; m where it is left out" in text
    assert f"train.steps={base.train.steps} " in text and f"model.n_layers={base.model.n_layers} " in text
    assert f"optim.learning_rate={base.optim.learning_rate} " in text and "model.attention='mla' " in text
    assert "mha | gqa | mla" in text and "--config NAME --help lists every knob" in text
    for name in (*config_files.names(), *config_files.study_names(), *config_files.sizes()):
        assert f"{name}" in text, name
    for code in main_module.EXIT_CODES:
        assert f"\n  {code} " in text
    assert help_page(capsys, "sample") == help_page(capsys, "--mode") == text


def test_help_explains_every_knob_in_the_words_of_the_base_config() -> None:
    texts = cli_help.explanations()
    assert set(texts) == set(config_files.knobs(config_files.load_config_dict("base")))
    assert [name for name, text in texts.items() if not text] == ["optim.beta1", "optim.beta2"]
    assert texts["init_from"].startswith("run folder whose weights") and texts["model.v_head_dim"] == (
        "mla only: 0 = head_dim"
    )


def test_help_with_a_config_lists_every_knob_as_the_command_has_it(capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    text = help_page(capsys, "--config=smoke", "--config.train.steps=7", "--workdir=w")
    for name in config_files.knobs(config_files.load_config_dict("base")):
        assert f"\n  {name}=" in text, name
    assert "train.steps=7 " in text and "model.d_model=32 " in text and "train.seq_len=64 " in text
    assert text.index("init_from=") < text.index("model.n_layers=") < text.index("bench.size=")


def test_help_with_a_mode_explains_its_flags_alone(capsys: pytest.CaptureFixture) -> None:
    text = help_page(capsys, "--mode=sample")
    assert "how a story begins" in text and "--base_url" not in text and "repeat this option" not in text
    assert "judge:" not in text and text.count("sample:") == 1  # whose flags they are is said once
    assert "default: 300" in help_page(capsys, "--mode", "train")
    assert help_page(capsys, "--config=study_smoke") == help_page(capsys, "--mode=study")


def test_what_the_table_of_flags_names_exists() -> None:
    """Modes, knobs of training, fields of the sections `bench` and `judge`."""
    knobs = set(config_files.knobs(config_files.load_config_dict("base")))
    for name, flag in cli_table.FLAGS.items():
        assert set(flag.modes) <= set(cli_table.MODES), name
        assert {flag.knob, flag.setting} <= knobs | {""}, name
        assert flag.setting.partition(".")[0] in ("", *flag.modes), name
    assert set(cli_table.settings("bench").values()) == {"size", "batches", "contexts", "max_minutes"}


def test_help_for_what_there_is_not_is_refused(refused) -> None:
    refused("--config=smokey", "--help", words=("did you mean smoke",))
    refused("--mode=trian", "--help", words=("one of train",))
