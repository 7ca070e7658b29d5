"""Imports of folders that are damaged, lie or contradict themselves: a sentence, exit code 2, nothing written."""

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hf_tools import edit_json, edit_tensors
from run_tools import listing

from mla_jax.errors import run_command
from mla_jax.interop import import_hf

pytest.importorskip("safetensors", reason="pip install safetensors, or '.[dev]'")
pytest_plugins = ["hf_fixtures"]


def header(path: Path, change: Callable[[dict], object]) -> None:
    """Rewrite the JSON header of a safetensors file, and nothing of what follows it."""
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    entries = json.loads(content[8 : 8 + length])
    change(entries)
    text = json.dumps(entries).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + length :])


NORM, DOWN = "model.norm.weight", "model.layers.0.mlp.down_proj.weight"
WEIGHTS = {
    "missing": (lambda p: p.unlink(), "no model.safetensors"),
    "pickled": (lambda p: p.rename(p.with_name("pytorch_model.bin")), "pytorch_model.bin", "pickle"),
    "empty": (lambda p: p.write_bytes(b""), "damaged"),
    "cut": (lambda p: p.write_bytes(p.read_bytes()[:-100]), "damaged"),
    "a_pickle_by_that_name": (lambda p: p.write_bytes(b"\x80\x04\x95" + b"x" * 99), "damaged"),
    "a_huge_header": (lambda p: p.write_bytes(struct.pack("<Q", 2**62) + b"{}"), "damaged"),
    "offsets_beyond_the_end": (
        lambda p: header(p, lambda h: h[NORM].update(data_offsets=[10**9, 10**9 + 128])),
        "damaged",
    ),
    "overlapping_offsets": (lambda p: header(p, lambda h: h[NORM].update(data_offsets=[0, 128])), "damaged"),
    "a_shape_that_is_too_large": (lambda p: header(p, lambda h: h[NORM].update(shape=[33])), "damaged"),
    "another_dtype_of_that_size": (lambda p: header(p, lambda h: h[NORM].update(dtype="I32")), NORM, "I32"),
    "a_shape_of_that_size": (lambda p: header(p, lambda h: h[NORM].update(shape=[2, 16])), NORM, "[2, 16]", "[32]"),
    "transposed": (
        lambda p: header(p, lambda h: h[DOWN].update(shape=h[DOWN]["shape"][::-1])),
        DOWN,
        "[24, 32]",
        "[32, 24]",
    ),
    "a_tensor_missing": (lambda p: edit_tensors(p, lambda t: t.pop(NORM)), "has no tensor", NORM),
    "a_tensor_too_many": (lambda p: edit_tensors(p, lambda t: t.update(x=t[NORM])), "no use for", "x"),
    "an_untied_head": (
        lambda p: edit_tensors(p, lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"] + 1})),
        "tied",
    ),
    "not_a_number": (lambda p: edit_tensors(p, lambda t: t.update({NORM: np.full(32, np.nan, np.float32)})), NORM),
}


def refused(folder: Path, workdir: Path, words: tuple[str, ...], capsys: pytest.CaptureFixture) -> None:
    """The import's command line says one sentence, exits with 2 and writes nothing."""
    before = listing(folder.parent)
    capsys.readouterr()
    assert run_command(import_hf.main, ["--hf", str(folder), "--workdir", str(workdir)]) == 2
    out, err = capsys.readouterr()
    assert not out and err.startswith("mla_jax: ") and err.count("\n") == 1 and err.endswith(".\n"), err
    for word in (folder.name, *words):
        assert word in err, f"{word!r} is not in: {err}"
    assert listing(folder.parent) == before


@pytest.mark.parametrize("name", WEIGHTS)
def test_lying_weights_are_refused(exported: Path, tmp_path: Path, name: str, capsys: pytest.CaptureFixture) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(exported, folder)
    damage, *words = WEIGHTS[name]
    damage(folder / "model.safetensors")
    refused(
        folder, tmp_path / "run", ("model.safetensors",) if name != "missing" else (), capsys
    )  # the manifest sees it
    (folder / "mla_jax.json").unlink()
    refused(folder, tmp_path / "run", tuple(words), capsys)


FOLDERS = {
    "no_config": (lambda f: (f / "config.json").unlink(), "config.json"),
    "config_of_another": (
        lambda f: edit_json(f / "config.json", lambda c: c.update(hidden_size=64)),
        "config.json",
    ),
    "untied_without_a_head": (
        lambda f: (
            (f / "mla_jax.json").unlink() or edit_json(f / "config.json", lambda c: c.update(tie_word_embeddings=False))
        ),
        "tie_word_embeddings is False",
        "lm_head.weight",
    ),
    "manifest_cut": (lambda f: (f / "mla_jax.json").write_text('{"format": 1'), "mla_jax.json is damaged"),
    "manifest_newer": (lambda f: edit_json(f / "mla_jax.json", lambda c: c.update(format=9)), "format 9", "upgrade"),
    "manifest_without_files": (
        lambda f: edit_json(f / "mla_jax.json", lambda c: c.pop("files")),
        "mla_jax.json is damaged",
    ),
    "manifest_of_another_model": (
        lambda f: edit_json(f / "mla_jax.json", lambda c: c["config"]["config"]["model"].update(rope_theta=77.0)),
        "model.rope_theta is 10000.0",
        "77.0",
    ),
    "tokenizer_cut": (
        lambda f: (
            (f / "mla_jax.json").unlink()
            or (f / "tokenizer.model").write_bytes((f / "tokenizer.model").read_bytes()[:900])
        ),
        "tokenizer.model' is not a sentencepiece model or is damaged: copy it again.",
    ),
    "another_tokenizer": (
        lambda f: edit_json(f / "mla_jax.json", lambda c: c["data"].update(tokenizer_sha256="0")),
        "tokenizer",
    ),
}


@pytest.mark.parametrize("name", FOLDERS)
def test_a_folder_that_contradicts_itself_is_refused(
    exported: Path, tmp_path: Path, name: str, capsys: pytest.CaptureFixture
) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(exported, folder)
    damage, *words = FOLDERS[name]
    damage(folder)
    refused(folder, tmp_path / "run", tuple(words), capsys)
