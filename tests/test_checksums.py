"""mla_jax.checksums: any change of any sealed file is found; what was never sealed passes."""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mla_jax import checksums


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "model" / "d").mkdir(parents=True)
    (tmp_path / "train").mkdir()
    (tmp_path / "model" / "d" / "weights").write_bytes(bytes(range(256)))
    (tmp_path / "model" / "manifest").write_bytes(b"m")
    (tmp_path / "train" / "state").write_bytes(b"state")
    return tmp_path


def test_what_was_sealed_passes_and_leaves_no_temporary_file(folder: Path) -> None:
    checksums.check(folder)  # not sealed yet
    checksums.seal(folder)
    checksums.check(folder)
    assert [p.name for p in folder.iterdir() if p.is_file()] == [checksums.NAME]
    checksums.seal(folder)  # its own file is not among the sealed
    checksums.check(folder)


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(byte=st.integers(0, 255), bit=st.integers(0, 7))
def test_a_flipped_bit_is_found(folder: Path, byte: int, bit: int) -> None:
    path = folder / "model" / "d" / "weights"
    content = bytearray(range(256))
    path.write_bytes(content)
    checksums.seal(folder)
    content[byte] ^= 1 << bit
    path.write_bytes(content)
    with pytest.raises(checksums.Mismatch, match="model/d/weights does not have the content that was written"):
        checksums.check(folder)


def test_missing_short_and_foreign_files(folder: Path) -> None:
    checksums.seal(folder)
    (folder / "train" / "state").write_bytes(b"sta")
    checksums.check(folder, "model")  # the other item is whole
    with pytest.raises(checksums.Mismatch, match="train/state has 3 bytes instead of 5"):
        checksums.check(folder)
    (folder / "train" / "state").unlink()
    with pytest.raises(checksums.Mismatch, match="train/state cannot be read"):
        checksums.check(folder, "train")


@pytest.mark.parametrize("text", ["", "{", "[]", '{"a": 1}', '{"a": {"size": 1}}', "\x00"])
def test_damaged_checksums_are_a_mismatch(folder: Path, text: str) -> None:
    (folder / checksums.NAME).write_text(text)
    with pytest.raises(checksums.Mismatch, match="checksums.json is damaged"):
        checksums.check(folder)
