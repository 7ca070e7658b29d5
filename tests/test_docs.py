"""Figures in docs/ come back from the code that is said to make them; nothing committed names this or that machine."""

import importlib.util
import re
import subprocess
from pathlib import Path

import pytest

from mla_jax import parameter_table, rows

REPO = Path(__file__).resolve().parents[1]


def test_the_parameter_table_is_what_the_code_computes() -> None:
    assert parameter_table.table() in (REPO / "docs/results/parameters.md").read_text(encoding="utf-8")


def test_the_page_of_modules_has_every_module_with_its_own_words() -> None:
    spec = importlib.util.spec_from_file_location("modules_page", REPO / "launch" / "modules_page.py")
    modules_page = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(modules_page)
    assert modules_page.page() == modules_page.PAGE.read_text(encoding="utf-8"), "run python launch/modules_page.py"
    assert not [line for line in modules_page.page().splitlines() if line.endswith("`: ")], "without a docstring"


def test_the_gpu_table_is_what_its_rows_say() -> None:
    stored = rows.read_rows(REPO / "docs/results/rows/tinystories_gpu.jsonl")
    assert len(stored) == 5
    assert rows.table(stored) in (REPO / "docs/results/tinystories_gpu.md").read_text(encoding="utf-8")


def test_links_of_the_readme_lead_somewhere() -> None:
    for page in [REPO / "README.md", *sorted((REPO / "docs").rglob("*.md"))]:
        for target in re.findall(r"\]\((?!https?://)([^)#]+)\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_smoke_study_takes_as_long_wherever_it_is_told() -> None:
    for page in ("README.md", "configs/study_smoke.py", "docs/how-to/reproduce_a_table.md"):
        lines = [line for line in (REPO / page).read_text(encoding="utf-8").splitlines() if "minutes" in line]
        told = [line for line in lines if re.search("study_smoke|toy size|every stage", line)]
        assert told and all("3 to 5 minutes" in line for line in told), page


def test_own_text_is_first_trained_on_with_a_model_that_a_cpu_can_hold() -> None:
    page = (REPO / "docs/how-to/own_data.md").read_text(encoding="utf-8")
    assert re.search(r"--config (\S+)", page)[1] == "quickstart"


def test_no_file_names_a_machine_or_an_index() -> None:
    try:
        listed = subprocess.run(["git", "ls-files", "-z"], cwd=REPO, capture_output=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    pattern = re.compile(rb"(?<![\w.])/(?:work|root|farm)/|--(?:extra-)?index-url|https?://\S*/simple\b")
    for name in filter(None, listed.decode().split("\0")):
        path = REPO / name
        if path == Path(__file__).resolve() or path.suffix == ".png" or not path.is_file():
            continue
        assert not pattern.search(path.read_bytes()), name
