"""README's block of results, made from the rows of the repository: python -m mla_jax.study.readme [README.md]

With a file, the text between the two marks in it is replaced; without, the block is printed.
"""

import sys
from pathlib import Path

from mla_jax.accounting import kv_bytes
from mla_jax.config_files import load_config_dict, study_names
from mla_jax.errors import UserError
from mla_jax.study import claim_tables, tables
from mla_jax.study.grid import from_config_dict
from mla_jax.study.results import Results, collect, reference_of, relative
from mla_jax.study.rows import Rows, best_loss, gather, model_of
from mla_jax.study.stats import estimate
from mla_jax.study.verdicts import judge

BEGIN = "<!-- made by: python -m mla_jax.study.readme README.md -->"
END = "<!-- end of the made part -->"


def block(rows: Rows | None = None) -> str:
    """The marks and, between them, the headline tables of studies with rows and a verdict for every claim."""
    rows = gather(None) if rows is None else rows
    studies = [collect(from_config_dict(load_config_dict(name)), rows) for name in study_names()]
    parts = [BEGIN]
    parts += [_headline(found) for found in studies if found.study.verdicts and found.tier("headline")]
    parts.append(_verdicts(studies))
    return "\n\n".join([*parts, END])


def _headline(found: Results) -> str:
    reference = reference_of(found, "headline")
    rows = []
    for p in found.tier("headline"):
        change = estimate(relative(p, reference)) if reference and p is not reference else None
        cell = tables.with_error(change, 2, sign=True) if change and change.n else "-"
        saved = f"{100 * tables.kv_saved(p.any):.1f} %"
        rows.append((p.name, f"{kv_bytes(model_of(p.any)):,}", saved, tables.with_error(
            p.over_seeds(best_loss)), cell))  # fmt: skip
    against = f"% against {reference.name}" if reference else "%"
    head = ("model", "KV bytes/token", "saved", "validation loss", against)
    points = found.tier("headline")
    devices = ", ".join(sorted({row["device"] for p in points for row in p.by_seed.values()}))
    return f"**{found.study.title}** ({devices}; mean ± 95 %, seeds):\n\n{tables.table(head, rows)}"


def _verdicts(studies: list[Results]) -> str:
    rows = []
    for paper in ("A", "B", "C"):
        judged = [j for found in studies if paper in found.study.papers for j in judge(found) if found.study.verdicts]
        for claim_id in dict.fromkeys(j.claim.id for j in judged if j.claim.paper == paper):
            of_claim = [j for j in judged if j.claim.id == claim_id]
            best = next((j for j in of_claim if j.test), of_claim[0])  # of two studies, the one that has rows
            found = claim_tables.measured(best.test.found, best.claim.unit) if best.test else best.arithmetic or "-"
            rows.append((claim_id, best.claim.words, found, best.verdict))
    return tables.table(("", "the paper says", "we find", "verdict"), rows)


def replaced(text: str, made: str) -> str:
    """`text` with the part from BEGIN to END replaced. Raises UserError when a mark is missing."""
    begin, end = text.find(BEGIN), text.find(END)
    if begin < 0 or end < begin:
        raise UserError(f"the file lacks the lines {BEGIN!r} and {END!r}, in this order: paste the printed block once.")
    return text[:begin] + made + text[end + len(END) :]


def _main(arguments: list[str]) -> int:
    if not arguments:
        print(block())
        return 0
    path = Path(arguments[0])
    try:
        path.write_text(replaced(path.read_text(encoding="utf-8"), block()), encoding="utf-8")
    except UserError as error:
        print(f"mla_jax: {path}: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(_main(sys.argv[1:]))
