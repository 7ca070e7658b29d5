"""A fixture for command lines that must be refused."""

from collections.abc import Callable

import pytest

from mla_jax.main import main


@pytest.fixture
def refused(capsys: pytest.CaptureFixture) -> Callable[..., str]:
    """Run a command line that must be refused; returns the sentence, after looking for `words` in it."""

    def check(*arguments: object, words: tuple[str, ...] = ()) -> str:
        capsys.readouterr()
        code = main(["mla_jax", *map(str, arguments)])
        out, err = capsys.readouterr()
        assert code == 2, f"exit code {code}: {out}{err}"
        lines = [line for line in err.splitlines() if line.startswith("mla_jax: ")]
        assert len(lines) == 1 and err.rstrip() == lines[0], err
        assert lines[0].endswith(".") and len(lines[0]) > 30, lines[0]
        assert "Traceback" not in out + err
        for word in words:
            assert word in lines[0], f"{word!r} is not in: {lines[0]}"
        return lines[0]

    return check
