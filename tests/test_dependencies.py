"""docs/dependencies.md speaks of every package that is asked for or pinned, and of no other."""

import re
import tomllib
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
DOC = REPOSITORY / "docs" / "dependencies.md"

pytestmark = pytest.mark.skipif(not DOC.exists(), reason="docs/ is not part of this copy")


def names(requirements: list[str]) -> set[str]:
    return {re.match(r"[A-Za-z0-9_.-]+", requirement)[0].lower() for requirement in requirements}


def section(title: str) -> str:
    return DOC.read_text(encoding="utf-8").split(f"## {title}\n", 1)[1].split("\n## ", 1)[0].lower()


def pinned() -> set[str]:
    lines = (REPOSITORY / "requirements-lock.txt").read_text(encoding="utf-8").splitlines()
    return {line.partition("==")[0].lower() for line in lines if "==" in line}


def test_each_runtime_dependency_has_its_line() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    rows = set(re.findall(r"^\| ([a-z0-9-]+) \|", section("What a run needs"), re.MULTILINE)) - {"package"}
    assert rows == names(project["dependencies"])
    extras = section("Extras")
    for extra, requirements in project["optional-dependencies"].items():
        assert re.search(rf"^\| [^|]*\b{extra}\b", extras, re.MULTILINE), extra
        for name in names(requirements):
            assert name in extras, name


def test_each_pinned_package_has_a_licence() -> None:
    words = set(re.findall(r"[a-z0-9][a-z0-9-]*", section("Licences of the pinned set")))
    assert pinned() - words == set()
    for name in ("gpl", "agpl", "lgpl"):
        assert name not in words


def test_no_address_is_pinned() -> None:
    for path in REPOSITORY.glob("requirements*.txt"):
        assert not re.search(r"https?:|--index|--extra|git\+", path.read_text(encoding="utf-8")), path.name
