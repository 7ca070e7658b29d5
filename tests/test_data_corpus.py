"""mla_jax.data.corpus: splits by hash or by file, and a fingerprint of content and rules, not of names."""

import gzip
import os
import random
from pathlib import Path

import pytest

from mla_jax.config import Config
from mla_jax.config_files import load_config
from mla_jax.data.corpus import WorldCorpus, open_corpus
from mla_jax.errors import UserError

STORIES = [f"Story {i}: a fox and {random.Random(i).choice(['a key', 'an owl', 'a hat'])}." for i in range(1000)]


def write(path: Path, stories: list[str]) -> Path:
    path.write_text("\n<|endoftext|>\n".join(stories))
    return path


def config(path: Path | str, **knobs) -> Config:
    return load_config("smoke", **{"data.path": str(path), **{f"data.{k}": v for k, v in knobs.items()}})


def test_parts_are_disjoint_complete_ordered_and_of_the_asked_size(tmp_path: Path) -> None:
    corpus = open_corpus(config(write(tmp_path / "s.txt", STORIES), valid_fraction=0.1))
    train, valid = list(corpus.stories("train")), list(corpus.stories("valid"))
    assert not set(train) & set(valid)
    assert sorted(train + valid) == sorted(STORIES)
    assert train == [s for s in STORIES if s in set(train)]
    assert 60 < len(valid) < 140
    assert corpus.survey().stories == {"train": len(train), "valid": len(valid)}


def test_a_story_keeps_its_part_whatever_stands_around_it(tmp_path: Path) -> None:
    whole = open_corpus(config(write(tmp_path / "a.txt", STORIES), valid_fraction=0.1))
    shuffled = random.Random(0).sample(STORIES, 500) * 2
    half = open_corpus(config(write(tmp_path / "b.txt", shuffled), valid_fraction=0.1))
    assert set(half.stories("valid")) == set(whole.stories("valid")) & set(shuffled)
    assert not set(half.stories("valid")) & set(half.stories("train"))


def test_a_validation_file_is_the_validation_part(tmp_path: Path) -> None:
    train, valid = write(tmp_path / "t.txt", STORIES[:9]), write(tmp_path / "v.txt", STORIES[9:12])
    corpus = open_corpus(config(train, valid_path=str(valid)))
    assert list(corpus.stories("train")) == STORIES[:9]
    assert list(corpus.stories("valid")) == STORIES[9:12]
    assert corpus.survey().stories == {"train": 9, "valid": 3}


def test_fingerprint_is_of_content_not_of_names_or_times(tmp_path: Path) -> None:
    a = open_corpus(config(write(tmp_path / "a.txt", STORIES)))
    os.utime(write(tmp_path / "b.txt", STORIES), (0, 0))
    assert open_corpus(config(tmp_path / "b.txt")).fingerprint == a.fingerprint
    assert len(a.fingerprint) == 64 and int(a.fingerprint, 16)


def test_fingerprint_changes_with_everything_that_changes_stories(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", STORIES)
    jsonl = tmp_path / "a.jsonl"
    jsonl.write_bytes(path.read_bytes())
    edited = write(tmp_path / "c.txt", [*STORIES[:-1], STORIES[-1].replace("fox", "cat")])
    corpora = [
        config(path),
        config(path, valid_fraction=0.02),
        config(path, invalid_utf8="replace"),
        config(path, valid_path=str(edited)),
        config(edited, valid_path=str(path)),
        config(jsonl),
        config(edited),
    ]
    assert len({open_corpus(c).fingerprint for c in corpora}) == len(corpora)
    assert open_corpus(config(path, threads=7)).fingerprint == open_corpus(corpora[0]).fingerprint


def test_a_source_that_changes_while_it_is_read_is_noticed(tmp_path: Path) -> None:
    path = write(tmp_path / "s.txt", STORIES)
    corpus = open_corpus(config(path))
    corpus.check_unchanged()
    write(path, STORIES[:-1])
    with pytest.raises(UserError, match="changed while it was read"):
        corpus.check_unchanged()
    path.unlink()
    with pytest.raises(UserError, match="changed while it was read"):
        corpus.check_unchanged()


def test_replaced_stories_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "s.txt.gz"
    path.write_bytes(gzip.compress("\n<|endoftext|>\n".join(STORIES).replace("Story 5", "\u00e9").encode("latin-1")))
    n = sum(s.startswith("Story 5") for s in STORIES)
    assert open_corpus(config(path, invalid_utf8="replace")).survey().replaced == n > 100


def test_parts_without_stories_are_refused(tmp_path: Path) -> None:
    one = write(tmp_path / "one.txt", STORIES[:1])
    with pytest.raises(
        UserError, match=r"it holds one story, of which no validation part can be held out .*no chapter.*valid_path\.$"
    ):
        open_corpus(config(one)).survey()
    only_valid = next(
        s for s in STORIES if s in set(open_corpus(config(write(tmp_path / "a", STORIES))).stories("valid"))
    )
    with pytest.raises(UserError, match="it holds one story, of which no validation part can be held out"):
        open_corpus(config(write(tmp_path / "b.txt", [only_valid]))).survey()
    with pytest.raises(UserError, match="holds no stories, only separators"):
        open_corpus(config(write(tmp_path / "none.txt", ["", " ", "\n"]))).survey()
    with pytest.raises(UserError, match=r"^data\.valid_path is '.*none.txt'; it holds no stories"):
        open_corpus(config(one, valid_path=str(tmp_path / "none.txt"))).survey()


def test_embedded_stories() -> None:
    small = load_config("smoke", **{"data.stories": 30, "data.valid_stories": 5})
    corpus = open_corpus(small)
    train, valid = list(corpus.stories("train")), list(corpus.stories("valid"))
    assert corpus.survey().stories == {"train": len(train), "valid": len(valid)} == {"train": 30, "valid": 5}
    assert not set(train) & set(valid)
    assert list(open_corpus(small).stories("train")) == train
    other = [("data.stories", 31), ("data.valid_stories", 6), ("data.seed", 1)]
    changed = [
        open_corpus(load_config("smoke", **{"data.stories": 30, "data.valid_stories": 5} | {k: v})) for k, v in other
    ]
    assert len({c.fingerprint for c in [corpus, *changed]}) == 4
    assert list(changed[2].stories("train")) != train


def test_a_second_reader_of_the_world_gets_the_same_stories(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those kept, and those made anew where the room was too small; also when two read at a time."""
    expected = list(WorldCorpus(6, 2, 0).stories("train"))
    monkeypatch.setattr("mla_jax.data.corpus._KEPT_CHARACTERS", len(expected[0]) + len(expected[1]) + 1)
    corpus = WorldCorpus(6, 2, 0)
    both = list(zip(corpus.stories("train"), corpus.stories("train"), strict=True))
    assert both == [(text, text) for text in expected]
    assert list(corpus.stories("train")) == expected
    assert [text for split, text in corpus.rows() if split == "train"] == expected
    assert corpus._kept["train"] == expected[:3]
