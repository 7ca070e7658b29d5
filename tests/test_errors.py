"""What a user reads of an error, and how a command line ends with one."""

from collections.abc import Sequence

import pytest

from mla_jax.errors import UserError, brief, run_command


def test_a_librarys_error_on_one_line() -> None:
    error = ValueError("\n no  such\n  file ")
    assert brief(error) == "no such file"
    assert brief(error, first_line=True) == "no such"
    assert brief(error, limit=4) == "no s"
    assert brief(KeyError()) == brief(KeyError(), first_line=True) == "KeyError"


def test_a_command_line_ends_with_a_sentence(capsys: pytest.CaptureFixture) -> None:
    def main(arguments: Sequence[str]) -> int | None:
        if arguments == ["bad"]:
            raise UserError("--x is bad: leave it out.")
        return int(arguments[0]) if arguments else None

    assert [run_command(main, given) for given in ([], ["3"])] == [0, 3]
    assert run_command(main, ["bad"]) == 2
    assert capsys.readouterr().err == "mla_jax: --x is bad: leave it out.\n"
