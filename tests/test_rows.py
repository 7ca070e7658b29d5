"""mla_jax.rows: the result row's contract and reading what a killed process left."""

from pathlib import Path

from mla_jax.rows import append_row, read_rows, result_row


def test_a_result_row_has_the_contract_s_fields(monkeypatch) -> None:
    monkeypatch.setattr("sys.argv", ["/somewhere/main.py", "--workdir", "my runs/x"])
    row = result_row("x", "abc", {"loss": 1.5}, "fingerprint", "tokenizer")
    assert list(row) == [
        *("name", "config_hash", "metrics", "device", "versions"),
        *("data_fingerprint", "tokenizer_sha256", "command", "time"),
    ]
    assert row["command"] == "python -m mla_jax.main --workdir 'my runs/x'"
    assert "jax" in row["versions"] and row["device"]


def test_rows_come_back_and_a_cut_last_line_does_not(tmp_path: Path, caplog) -> None:
    path = tmp_path / "rows.jsonl"
    assert read_rows(path) == []
    rows = [{"step": 1, "loss": 0.1 + 0.2}, {"step": 2, "name": "caf\u00e9 \u2028 x"}]
    for row in rows:
        append_row(path, row)
    assert read_rows(path) == rows
    with path.open("ab") as file:
        file.write(b'{"step": 3, "name": "caf\xc3')
    assert read_rows(path) == rows and not caplog.messages  # its writer was killed: nothing to say
    append_row(path, {"step": 3})
    assert read_rows(path) == [*rows, {"step": 3}]  # not on the unfinished line


def test_a_damaged_line_before_the_last_is_named_once(tmp_path: Path, caplog) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"step": 1}\n{"step"\n3\n{"step": 4}\n{"st\n')
    for _ in range(2):
        assert read_rows(path) == [{"step": 1}, {"step": 4}]
    assert [line.split(" is ")[0] for line in caplog.messages] == [f"{path}, line {n}," for n in (2, 3, 5)]
