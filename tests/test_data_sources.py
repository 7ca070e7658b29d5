"""mla_jax.data.sources, parquet and hub: what a path means, stories in columns, and data sets that are copied once."""

import builtins
import dataclasses
import json
import os
import sys
import types
from pathlib import Path

import pytest

from mla_jax.config import Config
from mla_jax.config_files import load_config
from mla_jax.data import hub, readers
from mla_jax.data.corpus import open_corpus, open_to_evaluate
from mla_jax.data.readers import Count, Source
from mla_jax.data.sources import find
from mla_jax.errors import UserError

STORIES = ["One day.\nA fox came.", "Zo\u00eb \u2581 \U0001f98a", " leading and trailing "]


def like(path: Path | str = "x", **changes) -> Source:
    return Source(Path(path), "data.path", "refuse", **changes)


def config(tmp_path: Path, path: Path | str, **knobs) -> Config:
    return load_config(
        "smoke",
        **{"data.path": str(path), "data.cache_dir": str(tmp_path / "cache")},
        **{f"data.{name}": value for name, value in knobs.items()},
    )


def texts(found) -> list[str]:
    return [text for source in found.files for text in source.stories()]


# Folders


def test_a_folder_is_read_whole_in_the_order_of_its_paths(tmp_path: Path) -> None:
    folder = tmp_path / "stories"
    for name, content in {
        "b.txt": "b0\n<|endoftext|>\nb1",
        "a/z.jsonl": '{"text": "a/z"}',
        "a/c/y.txt": "a/c/y",
        "c.TXT": "C",
        "empty.txt": "",
        "notes.md": "no story",
        ".hidden.txt": "hidden",
        ".git/x.txt": "hidden",
    }.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)
    found = find(str(folder), like(), tmp_path)
    assert texts(found) == ["a/c/y", "a/z", "b0", "b1", "C"]
    corpus = open_corpus(config(tmp_path, folder))
    assert corpus.name == f"{folder} (4 files)"
    assert sorted(text for _, text in corpus.rows()) == sorted(texts(found))


def test_a_folder_of_one_file_is_that_file_and_order_counts(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("1\n<|endoftext|>\n2")
    for name, files in {"one": "1", "two": "12", "swapped": "21"}.items():
        (tmp_path / name).mkdir()
        for file, text in zip("ab", files, strict=False):
            (tmp_path / name / f"{file}.txt").write_text(text)
    (tmp_path / "same").mkdir()
    (tmp_path / "same" / "x.txt").write_bytes((tmp_path / "a.txt").read_bytes())
    prints = {n: open_corpus(config(tmp_path, tmp_path / n)).fingerprint for n in ("a.txt", "same", "two", "swapped")}
    assert prints["a.txt"] == prints["same"]
    assert len(set(prints.values())) == 3


def test_the_fingerprint_of_a_single_file_is_that_of_earlier_runs(tmp_path: Path) -> None:
    """Runs are held to it when they are resumed or evaluated: it may not change without CORPUS_VERSION."""
    (tmp_path / "s.txt").write_bytes(b"a story\n<|endoftext|>\nanother")
    one = open_corpus(config(tmp_path, tmp_path / "s.txt", valid_fraction=0.1))
    assert one.fingerprint == "58e707f463029b71b6fcf4574847294cb92de70ca4e12bcb4cbab3ad27688180"
    two = open_corpus(config(tmp_path, tmp_path / "s.txt", valid_path=str(tmp_path / "s.txt")))
    assert two.fingerprint == "c6bd12e8cfa84e264fb8df5de102b4bd23491dd9458f316d63d4c4162d7b574d"


@pytest.mark.parametrize("trains", [True, False])
def test_bad_places_are_refused_with_a_remedy_that_fits(tmp_path: Path, trains: bool) -> None:
    (tmp_path / "none").mkdir()
    (tmp_path / "latin").mkdir()
    (tmp_path / "latin" / "s.txt").write_bytes(b"caf\xe9")
    with pytest.raises(UserError, match="folder without story files: give it files that end in .txt, .jsonl"):
        find(str(tmp_path / "none"), like(trains=trains), tmp_path)
    with pytest.raises(UserError) as error:
        texts(find(str(tmp_path / "latin"), like(trains=trains), tmp_path))
    assert "story 1 is not valid UTF-8 (byte 4 of it): convert the file to UTF-8" in str(error.value)
    assert ("--config" in str(error.value)) == trains


def test_a_subfolder_that_cannot_be_read_is_not_left_out(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "s" / "closed").mkdir(parents=True)
    (tmp_path / "s" / "a.txt").write_text("a")
    real = os.scandir

    def scandir(path):
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(UserError, match=r"closed in it cannot be read \(Permission denied\): check the permissions"):
        find(str(tmp_path / "s"), like(), tmp_path)


@pytest.mark.parametrize(
    ("start", "kind"), [(b"\x1f\x8b\x08", "gzip"), (b"PAR1", "parquet"), (b"PK\x03\x04", "zip"), (b"\xfd7zXZ\0", "xz")]
)
def test_files_that_are_not_what_their_name_says_are_refused(tmp_path: Path, start: bytes, kind: str) -> None:
    (tmp_path / "s.txt").write_bytes(start + b"rest")
    with pytest.raises(UserError, match=f"its content is {kind} data, which its name does not say"):
        find(str(tmp_path / "s.txt"), like(), tmp_path)


# Columns


@pytest.mark.parametrize("field", ["text", "story", "content"])
def test_json_lines_find_their_field(tmp_path: Path, field: str) -> None:
    path = tmp_path / "s.jsonl"
    path.write_text("".join(json.dumps({"id": 1, field: text}) + "\n" for text in STORIES))
    assert texts(find(str(path), like(), tmp_path)) == STORIES
    with pytest.raises(UserError, match='line 1 is no object with a "tale"'):
        texts(find(str(path), like(text_field="tale"), tmp_path))


def test_a_named_field_wins(tmp_path: Path) -> None:
    (tmp_path / "s.jsonl").write_text('{"text": "a", "tale": "b"}\n')
    assert texts(find(str(tmp_path / "s.jsonl"), like(text_field="tale"), tmp_path)) == ["b"]
    a, b = (open_corpus(config(tmp_path, tmp_path / "s.jsonl", text_field=f)).fingerprint for f in ("text", "tale"))
    assert a != b


def write_parquet(path: Path, columns: dict, kind: str = "string", **more) -> Path:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    types_ = {"string": pyarrow.string(), "large": pyarrow.large_string(), "binary": pyarrow.binary()}
    types_["dictionary"] = pyarrow.dictionary(pyarrow.int32(), pyarrow.string())
    arrays = {
        name: pyarrow.array(values, types_[kind]) if name in ("text", "story", "tale") else pyarrow.array(values)
        for name, values in columns.items()
    }
    parquet.write_table(pyarrow.table(arrays), path, **more)
    return path


@pytest.mark.parametrize("kind", ["string", "large", "binary", "dictionary"])
def test_parquet_gives_the_stories_in_order(tmp_path: Path, kind: str) -> None:
    stories = [story.encode() if kind == "binary" else story for story in STORIES]
    path = write_parquet(
        tmp_path / "s.parquet",
        {"id": range(6), "text": [*stories, None, stories[0][:0], *stories[:1]]},
        kind,
        row_group_size=2,
    )
    assert texts(find(str(path), like(), tmp_path)) == [*STORIES, STORIES[0]]


def test_parquet_columns_are_found_by_rule_or_by_knob(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "s.parquet", {"tale": ["b"], "story": ["a"], "n": [1]})
    assert texts(find(str(path), like(), tmp_path)) == ["a"]
    assert texts(find(str(path), like(text_field="tale"), tmp_path)) == ["b"]
    with pytest.raises(UserError, match=r"no column 'n' of text \(its columns: tale \(string\), story \(string\), n"):
        texts(find(str(path), like(text_field="n"), tmp_path))
    bare = write_parquet(tmp_path / "t.parquet", {"n": [1], "tale": ["a"]})
    with pytest.raises(UserError) as error:
        texts(find(str(bare), like(), tmp_path))
    assert "no column 'text' or 'story' or 'content' of text" in str(error.value)
    assert str(error.value).endswith(
        "rename the column of the stories to 'text', or set --config.data.text_field to its name."
    )


def test_bad_parquet_is_a_sentence(tmp_path: Path, monkeypatch) -> None:
    path = write_parquet(tmp_path / "s.parquet", {"text": [b"fine", b"caf\xe9"]}, "binary")
    with pytest.raises(UserError, match="row 2 is not valid UTF-8"):
        texts(find(str(path), like(), tmp_path))
    count = Count()
    replacing = dataclasses.replace(like(path), invalid_utf8="replace")
    assert list(replacing.stories(count)) == ["fine", "caf\ufffd"] and count.replaced == 1
    with monkeypatch.context() as patch, pytest.raises(UserError, match="row 1 is longer than 0 MiB"):
        patch.setattr(readers, "MAX_STORY_BYTES", 3)
        texts(find(str(path), like(), tmp_path))
    for damaged in (path.read_bytes()[:-5], b"PAR1 and no more", path.read_bytes().replace(b"fine", b"fin")):
        (tmp_path / "d.parquet").write_bytes(damaged)
        with pytest.raises(UserError, match="parquet data is damaged or cut short"):
            texts(find(str(tmp_path / "d.parquet"), like(), tmp_path))


def without(monkeypatch, package: str) -> None:
    real = builtins.__import__

    def refuse(name, *rest, **more):
        if name.split(".")[0] == package:
            raise ImportError(name)
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", refuse)


def test_parquet_without_pyarrow_names_the_extra(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "s.parquet").write_bytes(b"PAR1")
    without(monkeypatch, "pyarrow")
    with pytest.raises(UserError, match=r"reading parquet needs pyarrow.*: pip install '.\[data\]' in the checkout\.$"):
        texts(find(str(tmp_path / "s.parquet"), like(), tmp_path))


# Hugging Face


@pytest.mark.parametrize(
    ("path", "answer"),
    [
        ("roneneldan/TinyStories", True),
        ("owner/name.v2:small", True),
        ("TinyStories", False),
        ("a/b/c", False),
        ("/a/b", False),
        ("./a/b", False),
        ("~/stories", False),
        ("data/train.txt", False),
        ("data/train.JSONL", False),
        ("data/train.txt.gz", False),
        ("configs/stories", False),  # a folder of that name is here: a file in it was meant
    ],
)
def test_what_looks_like_a_data_set(path: str, answer: bool, monkeypatch) -> None:
    monkeypatch.chdir(Path(__file__).resolve().parents[1])
    assert hub.looks_like_a_name(path) == answer


@pytest.fixture
def fake_hub(monkeypatch) -> types.SimpleNamespace:
    """A module `datasets` that serves `fake_hub.sets` and records what it was asked."""
    fake = types.SimpleNamespace(sets={}, asked=[])

    def load_dataset(name, config=None, streaming=False):
        assert streaming
        fake.asked.append((name, config))
        found = fake.sets[name]
        if isinstance(found, Exception):
            raise found
        return found

    module = types.ModuleType("datasets")
    module.load_dataset = load_dataset
    monkeypatch.setitem(sys.modules, "datasets", module)
    return fake


def rows(stories: list[str | None], column: str = "text") -> list[dict]:
    return [{"id": i, column: text} for i, text in enumerate(stories)]


def test_a_data_set_is_copied_once_with_its_own_validation_part(tmp_path: Path, fake_hub, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    fake_hub.sets["owner/name"] = {"train": rows([*STORIES, None]), "validation": rows(["held out"]), "test": rows("t")}
    chosen = config(tmp_path, "owner/name")
    corpus = open_corpus(chosen)
    assert corpus.name == "owner/name"
    assert list(corpus.stories("train")) == STORIES and list(corpus.stories("valid")) == ["held out"]
    assert list(open_to_evaluate("hf:owner/name", chosen).stories("valid")) == ["held out"]
    fake_hub.sets.clear()  # as without a network
    again = open_corpus(chosen)
    assert again.fingerprint == corpus.fingerprint and list(again.stories("train")) == STORIES
    assert fake_hub.asked == [("owner/name", None)]


def test_a_path_that_exists_wins_over_a_data_set(tmp_path: Path, fake_hub, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    fake_hub.sets["owner/name"] = {"train": rows(["from the hub"])}
    (tmp_path / "owner").mkdir()
    (tmp_path / "owner" / "name").write_text("from the file")
    assert texts(find("owner/name", like(), tmp_path / "cache")) == ["from the file"]
    assert texts(find("hf:owner/name", like(), tmp_path / "cache")) == ["from the hub"]


def test_a_data_set_of_one_split_is_split_by_hash(tmp_path: Path, fake_hub) -> None:
    stories = [f"Story {i}." for i in range(300)]
    fake_hub.sets["imdb"] = {"unsupervised": rows(stories, "content")}
    corpus = open_corpus(config(tmp_path, "hf:imdb:plain", valid_fraction=0.1))
    assert fake_hub.asked == [("imdb", "plain")]
    assert sorted(text for _, text in corpus.rows()) == sorted(stories)
    assert all(corpus.survey().stories.values())


class DatasetNotFoundError(Exception):
    """As the package's own, known by name."""


@pytest.mark.parametrize(
    ("found", "says"),
    [
        (DatasetNotFoundError("gone"), "has no data set of that name that you may read: check owner/name, or download"),
        (ConnectionError("no\nroute."), r"Hugging Face cannot be reached \(no route\): check the network, or download"),
        (ValueError("Config name is missing."), r"cannot be read \(Config name is missing\): check owner/name:config"),
        ({"a": rows("x"), "b": rows("y")}, r"no split named train \(it has a, b\)"),
        ({"train": rows("x", "label")}, r"no column 'text' or 'story' or 'content' of text \(its columns: id, label\)"),
    ],
)
def test_data_sets_that_cannot_be_read_are_a_sentence(tmp_path: Path, fake_hub, found, says: str) -> None:
    fake_hub.sets["owner/name"] = found
    with pytest.raises(UserError, match=says) as error:
        open_corpus(config(tmp_path, "owner/name"))
    message = str(error.value)
    assert message.startswith("data.path is 'owner/name'; ") and message.endswith(".") and "\n" not in message
    assert not list((tmp_path / "cache").rglob("*.jsonl"))


@pytest.mark.parametrize("name", ["hf:", "hf:/a", "hf:../a", "hf:a/b/c", "hf:a b", "hf:a/b:"])
def test_what_cannot_be_a_name_is_refused(tmp_path: Path, fake_hub, name: str) -> None:
    with pytest.raises(UserError, match="that is no name of a Hugging Face data set: write hf:owner/name"):
        open_corpus(config(tmp_path, name))
    assert not fake_hub.asked


@pytest.mark.slow
def test_the_real_package_streams_splits_and_columns(tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    (tmp_path / "set").mkdir()
    write_parquet(tmp_path / "set" / "train-0.parquet", {"id": [0, 1, 2], "story": STORIES})
    write_parquet(tmp_path / "set" / "validation-0.parquet", {"id": [3], "story": ["held out"]})
    source = like("owner/name")
    splits = hub._splits(hub._load(str(tmp_path / "set"), source), source)
    assert list(hub._texts(splits["train"], source)) == STORIES
    assert list(hub._texts(splits["valid"], source)) == ["held out"]
    with pytest.raises(UserError, match="Hugging Face"):
        hub._load(str(tmp_path / "none"), source)


def test_a_download_that_breaks_off_leaves_nothing(tmp_path: Path, fake_hub) -> None:
    def broken():
        yield from rows(STORIES)
        raise ConnectionError("reset")

    fake_hub.sets["owner/name"] = {"train": broken()}
    with pytest.raises(UserError, match="cannot be reached"):
        open_corpus(config(tmp_path, "owner/name"))
    assert not list((tmp_path / "cache").rglob("*.jsonl"))


def test_without_the_package_the_extra_is_named(tmp_path: Path, monkeypatch) -> None:
    without(monkeypatch, "datasets")
    with pytest.raises(UserError, match=r"no such file or folder.*needs the package datasets: pip install '.\[dat"):
        open_corpus(config(tmp_path, "owner/name"))
