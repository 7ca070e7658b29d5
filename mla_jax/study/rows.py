"""Study rows: one finished (or failed) run each, complete enough for a report that sees nothing else.

A row is the result row of docs/architecture.md and, beside it: `study` (where it belongs and how it ended), `config`
(as asked: format and values), `curve`, `by_position`, `story_losses`, `facts`, `spectra`, `experts`, `stories`.

    python -m mla_jax.study.rows docs/results/rows/study_paper_a.jsonl OUT/study_paper_a.rows.jsonl ...

adds rows that came back from another machine to the repository's, where they count as done.
"""

import dataclasses
import json
import math
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from mla_jax import config as config_lib
from mla_jax.config import Config
from mla_jax.errors import UserError, run_command
from mla_jax.files import lines_of, numbered, parsed, write_text
from mla_jax.rows import warn_once
from mla_jax.study.row_checks import fault_of, fault_of_decode

DONE = ("done", "diverged")  # how a run may end that has a result; "failed" has an error


def key_of(config: Config) -> str:
    """What names a run of a study: the hash of its config as asked, before the tokenizer's real size is known."""
    return config.hash


def key_of_row(row: dict[str, Any]) -> str:
    """The same from a row's own config, brought to today's format. Raises UserError when it cannot be."""
    return key_of(config_lib.loads(json.dumps(row["config"]), f"the row of {row['name']}"))


def located(path: Path) -> Iterator[tuple[str, dict[str, Any] | str]]:
    """(place, row) of a .json file (one row of a study) or of a .jsonl file, which may be of benchmarks or of torch's
    runs too; in place of a row what is wrong there.

    A cut last line is wrong too: these files are written whole, by no process that could be killed in the midst of it.
    """
    try:
        if path.suffix == ".jsonl":
            for number, row in numbered(lines_of(path)):
                yield f"{path}, line {number},", "it is no JSON object" if row is None else row
        elif path.suffix == ".json":
            row = parsed(path.read_text(encoding="utf-8", errors="replace"))
            yield str(path), "it is no row of a study" if row is None or not _is_study(row) else row
    except OSError as error:
        yield str(path), error.strerror or "it cannot be read"


def sound_key(row: dict[str, Any] | str) -> str | None:
    """The key of a study's row, None for a row of something else. Raises UserError, saying why, for a damaged one."""
    if isinstance(row, str):
        raise UserError(row)
    if what := fault_of(row) if _is_study(row) else _is_decode(row) and fault_of_decode(row):
        raise UserError(what)
    return key_of_row(row) if _is_study(row) else None


def _is_study(row: dict[str, Any]) -> bool:
    """Whether it is meant as one: what else is wrong with it is another question."""
    return "study" in row or "config" in row


def _is_decode(row: dict[str, Any]) -> bool:
    """A greedy decode figure of `--mode bench`: other methods and cache types have a label."""
    metrics = row.get("metrics")
    return (
        isinstance(metrics, dict)
        and metrics.get("suite") == "decode"
        and not metrics.get("label")
        and {"point", "batch", "context", "tokens_per_s"} <= metrics.keys()
    )


def committed_files() -> list[Path]:
    """Row files under docs/results/rows of the checkout this code runs from; none in an installed package."""
    folder = Path(__file__).resolve().parents[2] / "docs" / "results" / "rows"
    return sorted(path for path in folder.rglob("*.json*")) if folder.is_dir() else []


@dataclasses.dataclass(frozen=True)
class Rows:
    """Rows by key, the newest of each. unreadable: where a damaged row is, or one whose config cannot be read any
    more, and why. bench: decode benchmark rows of the repository.
    """

    by_key: dict[str, dict[str, Any]]
    unreadable: tuple[str, ...] = ()
    bench: tuple[dict[str, Any], ...] = ()

    def done(self, key: str, fingerprint: str | None = None) -> dict[str, Any] | None:
        """The finished row of that key, on data of that fingerprint where one is given."""
        row = self.by_key.get(key)
        if row is None or row["study"]["status"] not in DONE:
            return None
        return row if fingerprint in (None, row["data_fingerprint"]) else None


def gather(workdir: Path | None, with_committed: bool = True) -> Rows:
    """Rows of a study's folder and of the repository."""
    files = committed_files() if with_committed else []
    if workdir is not None:
        files = [*files, *sorted((workdir / "rows").glob("*.json"))]
    return read(files)


def read(files: Iterable[Path]) -> Rows:
    """Rows of .json and .jsonl files. Finished ones win over failed ones, then the newest, then the last.

    A row that cannot be used is named in a warning, and its run counts as missing: it is done again.
    """
    found: list[tuple[str, dict[str, Any]]] = []
    bench, unreadable = [], []
    for place, row in (pair for path in files for pair in located(path)):
        try:
            key = sound_key(row)
        except UserError as error:
            unreadable.append(f"{place} cannot be used ({str(error).rstrip('.')})")
            warn_once(f"{unreadable[-1]}: it is left out, and its run counts as missing.")
            continue
        if key is not None:
            found.append((key, row))
        elif _is_decode(row):
            bench.append(row)
    return Rows(dict(sorted(found, key=_rank)), tuple(unreadable), tuple(bench))


def _rank(found: tuple[str, dict[str, Any]]) -> tuple[bool, str]:
    """Of rows of one key that with the highest counts."""
    return (found[1]["study"]["status"] in DONE, found[1]["time"])


def best_loss(row: dict[str, Any]) -> float:
    """Best validation loss, nats per token; infinite for a run that diverged before its first evaluation."""
    value = row["metrics"].get("best_valid_loss")
    return float("inf") if value is None else float(value)


def standing(row: dict[str, Any]) -> tuple[bool, float]:
    """What runs of a point are chosen by, the smaller the better: one that diverged stands behind all that did not."""
    return row["study"]["status"] == "diverged", best_loss(row)


def fact_accuracy(row: dict[str, Any], distance: str) -> float:
    """Share of right answers to fact questions of all kinds; nan where none of that distance was put."""
    return next((f["accuracy"] for f in row["facts"] if (f["kind"], f["distance"]) == ("all", distance)), math.nan)


def model_of(row: dict[str, Any]) -> config_lib.ModelConfig:
    """The row's model with the embedding rows that its tokenizer gave it."""
    config = config_lib.loads(json.dumps(row["config"]), f"the row of {row['name']}")
    return dataclasses.replace(config.model, vocab_size=row["study"]["vocab_size"])


def merge(into: Path, sources: Sequence[Path]) -> int:
    """Add the study rows of `sources` to the .jsonl file `into`, one a key; returns how many it then holds.

    Which of a key stays: as `read`. Raises UserError, nothing written, where a file has rows that are not a study's or
    that cannot be used: they would be lost with the old `into`.
    """
    if into.suffix != ".jsonl" or (into.exists() and not into.is_file()) or not into.parent.is_dir():
        raise UserError(f"{str(into)!r} cannot be merged into: give a .jsonl file, new or of a study's rows.")
    for path in sources:
        if path.suffix not in (".json", ".jsonl") or not path.is_file():
            raise UserError(f"{str(path)!r} is no file of rows: give .json or .jsonl files.")
    found: list[tuple[str, dict[str, Any]]] = []
    for place, row in (pair for path in (into, *sources) if path.exists() for pair in located(path)):
        try:
            key = sound_key(row)
        except UserError as error:
            why = str(error).rstrip(".")
            raise UserError(f"{place} cannot be used ({why}): mend it or take it out. Nothing was written.") from None
        if key is None:
            raise UserError(f"{place} is no row of a study: merge files of studies only. Nothing was written.")
        found.append((key, row))
    by_key = dict(sorted(found, key=_rank))
    lines = [json.dumps(row) + "\n" for row in sorted(by_key.values(), key=lambda r: (r["name"], r["time"]))]
    try:
        write_text(into, "".join(lines))
    except OSError as error:
        raise UserError(f"{str(into)!r} cannot be written ({error.strerror}): give another place.") from None
    return len(lines)


def _main(arguments: Sequence[str]) -> None:
    into, *sources = map(Path, arguments or ["-"])
    if into.name.startswith("-") or not sources:
        usage = "python -m mla_jax.study.rows INTO.jsonl FROM.jsonl ..."
        raise UserError(f"it takes a file to merge into and the files to merge: {usage}")
    print(f"{merge(into, sources)} rows in {into}")


if __name__ == "__main__":
    sys.exit(run_command(_main))
