"""What a user reads of an error, and how a command line ends with one."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from mla_jax import cli, main
from mla_jax.errors import UserError, brief, run_command


def test_a_librarys_error_on_one_line() -> None:
    error = ValueError("\n no  such\n  file ")
    assert brief(error) == "no such file"
    assert brief(error, first_line=True) == "no such"
    assert brief(error, limit=4) == "no s"
    assert brief(KeyError()) == brief(KeyError(), first_line=True) == "KeyError"


def test_a_command_line_ends_with_a_sentence(capsys: pytest.CaptureFixture) -> None:
    def command(arguments: Sequence[str]) -> int | None:
        if arguments == ["bad"]:
            raise UserError("--x is bad: leave it out.")
        if arguments[:1] == ["read"]:
            Path(arguments[1]).read_text()
        return int(arguments[0]) if arguments else None

    assert [run_command(command, given) for given in ([], ["3"])] == [0, 3]
    assert run_command(command, ["bad"]) == 2
    assert capsys.readouterr().err == "mla_jax: --x is bad: leave it out.\n"
    assert run_command(command, ["read", "no/such"]) == 2
    assert capsys.readouterr().err == "mla_jax: 'no/such' cannot be used (No such file or directory): check the path.\n"


def test_a_file_that_may_not_be_read_is_bad_input_in_every_mode(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def run(argv: list[str]) -> int:
        raise PermissionError(13, "Permission denied", "x/metrics.jsonl")

    monkeypatch.setattr(cli, "run", run)
    assert main.main(["mla_jax"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("mla_jax: 'x/metrics.jsonl' cannot be used (Permission denied): change its permissions")
    assert error.count("\n") == 1
