"""Study rows: one finished (or failed) run each, complete enough for a report that sees nothing else.

A row is the result row of docs/architecture.md and, beside it: `study` (where it belongs and how it ended), `config`
(as asked: format and values), `curve`, `by_position`, `story_losses`, `facts`, `spectra`, `experts`, `stories`.

    python -m mla_jax.study.rows docs/results/rows/study_paper_a.jsonl OUT/study_paper_a.rows.jsonl ...

adds rows that came back from another machine to the repository's, where they count as done.
"""

import dataclasses
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mla_jax import config as config_lib
from mla_jax.config import Config
from mla_jax.errors import UserError
from mla_jax.rows import read_rows
from mla_jax.runs import write_text

DONE = ("done", "diverged")  # how a run may end that has a result; "failed" has an error


def key_of(config: Config) -> str:
    """What names a run of a study: the hash of its config as asked, before the tokenizer's real size is known."""
    return config.hash


def key_of_row(row: dict[str, Any]) -> str:
    """The same from a row's own config, brought to today's format. Raises UserError when it cannot be."""
    return key_of(config_lib.loads(json.dumps(row["config"]), f"the row of {row['name']}"))


def is_study_row(row: Any) -> bool:
    return isinstance(row, dict) and isinstance(row.get("study"), dict) and isinstance(row.get("config"), dict)


def read_files(paths: Iterable[Path]) -> list[dict[str, Any]]:
    """The study rows of .json (one row) and .jsonl files, in the order of the files; anything else is passed over."""
    found: list[Any] = []
    for path in paths:
        if path.suffix == ".jsonl":
            found += read_rows(path)
        elif path.suffix == ".json":
            try:
                found.append(json.loads(path.read_text(encoding="utf-8")))
            except (OSError, ValueError):
                continue  # half-copied: the run counts as missing and is done again
    return [row for row in found if is_study_row(row)]


def bench_rows(paths: Iterable[Path]) -> tuple[dict[str, Any], ...]:
    """Decode benchmark rows (mla_jax/bench) of .jsonl files."""
    found = [row for path in paths if path.suffix == ".jsonl" for row in read_rows(path)]
    return tuple(row for row in found if isinstance(row, dict) and _is_decode(row.get("metrics", {})))


def _is_decode(metrics: dict[str, Any]) -> bool:
    """A greedy decode figure of `--mode bench`: other methods and cache types have a label."""
    return (
        metrics.get("suite") == "decode"
        and not metrics.get("label")
        and {"point", "batch", "context", "tokens_per_s"} <= metrics.keys()
    )


def committed_files() -> list[Path]:
    """Row files under docs/results/rows of the checkout this code runs from; none in an installed package."""
    folder = Path(__file__).resolve().parents[2] / "docs" / "results" / "rows"
    return sorted(path for path in folder.rglob("*.json*")) if folder.is_dir() else []


@dataclasses.dataclass(frozen=True)
class Rows:
    """Rows by key, the newest of each; a row whose config cannot be read any more is among `unreadable`.

    bench: decode benchmark rows of the repository.
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
    """Rows of a study's folder and of the repository. Finished ones win over failed ones, then the newest."""
    files = committed_files() if with_committed else []
    if workdir is not None:
        files = [*files, *sorted((workdir / "rows").glob("*.json"))]
    by_key: dict[str, dict[str, Any]] = {}
    unreadable = []
    for row in sorted(read_files(files), key=lambda r: (r["study"].get("status") in DONE, r.get("time", ""))):
        try:
            by_key[key_of_row(row)] = row
        except (UserError, KeyError) as error:
            unreadable.append(str(error))
    return Rows(by_key, tuple(unreadable), bench_rows(files))


def best_loss(row: dict[str, Any]) -> float:
    """Best validation loss, nats per token; infinite for a run that diverged before its first evaluation."""
    value = row["metrics"].get("best_valid_loss")
    return float("inf") if value is None else float(value)


def model_of(row: dict[str, Any]) -> config_lib.ModelConfig:
    """The row's model with the embedding rows that its tokenizer gave it."""
    config = config_lib.loads(json.dumps(row["config"]), f"the row of {row['name']}")
    return dataclasses.replace(config.model, vocab_size=row["study"]["vocab_size"])


def merge(into: Path, sources: Iterable[Path]) -> int:
    """Add the study rows of `sources` to the .jsonl file `into`, one a key; returns how many it then holds.

    Finished rows win over failed ones, then the newest. Rows that cannot be read are left out.
    """
    by_key: dict[str, dict[str, Any]] = {}
    for row in sorted(read_files([into, *sources]), key=lambda r: (r["study"].get("status") in DONE, r["time"])):
        try:
            by_key[key_of_row(row)] = row
        except (UserError, KeyError) as error:
            print(f"left out: {error}", file=sys.stderr)
    lines = [json.dumps(row) + "\n" for row in sorted(by_key.values(), key=lambda r: (r["name"], r["time"]))]
    write_text(into, "".join(lines))
    return len(lines)


if __name__ == "__main__":
    target, *found = map(Path, sys.argv[1:] or ["-"])
    missing = [str(path) for path in found if not path.is_file()]
    if target.name.startswith("-") or not found or missing:
        said = (
            f"{missing[0]!r} is no file of rows" if missing else "it takes a file to merge into and the files to merge"
        )
        print(f"mla_jax: {said}: python -m mla_jax.study.rows INTO.jsonl FROM.jsonl ...", file=sys.stderr)
        sys.exit(2)
    print(f"{merge(target, found)} rows in {target}")
