"""Story files that training and evaluation refuse, through the real command line."""

import shutil
from pathlib import Path

import pytest
from run_tools import listing, train_flags, write_stories

pytest_plugins = ["run_fixtures", "refusals"]
pytestmark = pytest.mark.usefixtures("run_env")


DATA_FILES = [
    ({"data.path": "none.txt"}, "data.path", "no such file"),
    ({"data.path": "nothing"}, "data.path", "a folder without story files"),
    ({"data.path": "packed.txt"}, "data.path", "gzip", ".gz"),
    ({"data.path": "broken.parquet"}, "data.path", "parquet"),
    ({"data.path": "empty.txt"}, "data.path", "empty"),
    ({"data.path": "binary.txt"}, "data.path", "binary.txt", "NUL"),
    ({"data.path": "latin1.txt"}, "data.path", "UTF-8", "invalid_utf8=replace"),
    ({"data.path": "broken.jsonl"}, "data.path", "line 2", "JSON"),
    ({"data.path": "no_text.jsonl"}, "data.path", "line 1", "text"),
    ({"data.path": "cut.txt.gz"}, "data.path", "gzip"),
    ({"data.path": "one.txt"}, "validation", "data.valid_path"),
    ({"data.path": "blank.txt"}, "no stories"),
    ({"data.path": "stories.txt", "data.valid_path": "none.txt"}, "data.valid_path", "no such file"),
    ({"data.path": "stories.txt", "tokenizer.path": "none.model"}, "none.model", "does not exist"),
    ({"data.path": "stories.txt", "tokenizer.path": "stories.txt"}, "stories.txt", "sentencepiece"),
    ({"data.path": "stories.txt", "data.cache_dir": "stories.txt"}, "stories.txt", "data.cache_dir"),
]


@pytest.mark.parametrize(("files", "w"), [(row[0], row[1:]) for row in DATA_FILES], ids=lambda v: str(v)[:60])
def test_a_bad_data_file_is_refused(refused, stories_file: Path, tmp_path: Path, files: dict, w: tuple) -> None:
    write_stories(tmp_path / "stories.txt")
    (tmp_path / "nothing").mkdir()
    (tmp_path / "packed.txt").write_bytes(b"\x1f\x8b\x08\x00 packed")
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 and no more")
    (tmp_path / "empty.txt").touch()
    (tmp_path / "blank.txt").write_text("\n<|endoftext|>\n \n")
    (tmp_path / "one.txt").write_text("Only one story.")
    (tmp_path / "binary.txt").write_bytes(b"a\0b" * 100)
    (tmp_path / "latin1.txt").write_bytes("caf\u00e9\n".encode("latin-1") * 9)
    (tmp_path / "broken.jsonl").write_text('{"text": "a"}\n{"text": \n')
    (tmp_path / "no_text.jsonl").write_text('{"tale": "a"}\n')
    (tmp_path / "cut.txt.gz").write_bytes(b"\x1f\x8b\x08\x00 cut")
    before = listing(tmp_path)
    knobs = {"data.cache_dir": str(tmp_path / "cache")} | {name: f"{tmp_path}/{file}" for name, file in files.items()}
    refused(*train_flags(stories_file, tmp_path / "run", **knobs), words=w)
    assert listing(tmp_path) == before


def test_a_line_of_100_megabytes_is_refused(refused, stories_file: Path, tmp_path: Path) -> None:
    (tmp_path / "line.txt").write_bytes(b"word " * 20_000_000)
    flags = train_flags(stories_file, tmp_path / "run", **{"data.path": f"{tmp_path}/line.txt"})
    refused(*flags, words=("data.path", "story 1 is longer than 16 MiB", "<|endoftext|>"))
    assert [path.name for path in tmp_path.iterdir()] == ["line.txt"]


def test_a_file_to_evaluate_that_is_not_utf8_has_a_remedy_that_eval_has(refused, trained_run, tmp_path) -> None:
    run = Path(shutil.copytree(trained_run, tmp_path / "run"))
    (tmp_path / "latin1.txt").write_bytes("caf\u00e9\n".encode("latin-1") * 9)
    said = refused(
        "--mode=eval", f"--workdir={run}", f"--data.path={tmp_path}/latin1.txt", words=("--data.path", "to UTF-8.")
    )
    assert "--config" not in said
