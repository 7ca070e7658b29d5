"""README's block of results, made from the rows of the repository: python -m mla_jax.study.readme [README.md]

With a file, the text between the two marks in it is replaced; without, the block is printed.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from mla_jax.accounting import kv_bytes
from mla_jax.config_files import config_dir, load_config_dict, study_names
from mla_jax.errors import UserError, run_command
from mla_jax.markdown import table
from mla_jax.study import claim_tables, tables
from mla_jax.study.claims import CLAIMS, Claim
from mla_jax.study.evidence import Evidence, rope_interaction
from mla_jax.study.grid import Study, from_config_dict
from mla_jax.study.results import Measured, Results, collect, reference_of, relative
from mla_jax.study.rows import Rows, best_loss, gather, model_of
from mla_jax.study.stats import estimate
from mla_jax.study.verdicts import CONTRADICTED, Judged, judge_claim

BEGIN = "<!-- made by: python -m mla_jax.study.readme README.md -->"
END = "<!-- end of the made part -->"
CORPORA = {"": "we find: embedded stories, or arithmetic", ":files": "20,000 TinyStories"}  # form of a study -> column
SEEDS = 3  # that one point of a table needs
_WORSE = ("better", "worse")
# Below a claim's range, above it.
_SIDES = {"% of loss": _WORSE, "% of perplexity": _WORSE, "times": ("slower", "faster")}
_SIDES["% of the steps"] = ("faster", "slower")


def block(rows: Rows | None = None) -> str:
    """The marks and, between them, a verdict for every claim on either corpus, and tables of the headline points."""
    rows = gather(None) if rows is None else rows
    corpora = [[collect(study, rows) for study in declared(form) if study.verdicts] for form in CORPORA]
    shown = [(found, _rows_of(found)) for studies in corpora for found in studies]
    # Studies share rows: of two tables one may be a part of the other.
    headlines = [_headline(found) for found, own in shown if own and not any(own < other for _, other in shown)]
    every = {id(row): row for found, _ in shown for row in found.rows}  # studies share rows
    used = tables.device_minutes(tuple(every.values()))
    return "\n\n".join(
        [BEGIN, _verdicts(corpora), _rope(corpora), *filter(None, headlines), f"All of it: {used}.", END]
    )


def declared(form: str) -> list[Study]:
    """Every study that has this form."""
    found = []
    for name in study_names():
        try:
            found.append(from_config_dict(load_config_dict(name + form)))
        except UserError:
            if not form:
                raise  # a broken study must not leave README in silence
    return found


def _points(found: Results) -> list[Measured]:
    points = [p for p in found.tier("headline") if p.tuned]
    return points if any(len(p.by_seed) >= SEEDS for p in points) else []


def _rows_of(found: Results) -> set[int]:
    return {id(row) for p in _points(found) for row in p.by_seed.values()}


def _headline(found: Results) -> str:
    """A table, or "" where there is nothing to compare."""
    points, reference, rows = _points(found), reference_of(found, "headline"), []
    if len(points) < 2:
        return ""
    for p in points:
        change = estimate(relative(p, reference)) if reference and p is not reference else None
        cell = tables.with_error(change, 2, sign=True) if change and change.n else "-"
        saved, loss = f"{100 * tables.kv_saved(p.any):.1f} %", tables.with_error(p.over_seeds(best_loss))
        rows.append((p.name, f"{kv_bytes(model_of(p.any)):,}", saved, loss, cell))
    against = f"% against {reference.name}" if reference else "%"
    head = ("model", "KV bytes/token", "saved", "validation loss", against)
    devices = ", ".join(sorted({row["device"] for p in points for row in p.by_seed.values()}))
    page = f"docs/results/study_{found.study.name}/report.md"
    link = f"[report]({page}); " if (config_dir().parent / page).is_file() else ""
    model = points[0].any["config"]["config"]["model"]
    recipe = f"{tables.size_and_steps(points[0].any)}, block={model['block']}, dropout {model['dropout']:g}"
    how = f"{recipe}, {_rates(points)}; best evaluation, mean ± 95 %, seeds"
    title = f"**{found.study.title}** ({link}{devices}; {how}):"
    return f"{title}\n\n{table(head, rows)}"


def _rates(points: list[Measured]) -> str:
    """How the points got their learning rates."""
    most = max(len(p.sweep) for p in points)
    if most > 1:
        return f"each at the best of up to {most} learning rates"
    rates = sorted({p.any["study"]["learning_rate"] for p in points})
    return f"learning rate {' or '.join(f'{rate:g}' for rate in rates)}"


def _verdicts(corpora: list[list[Results]]) -> str:
    rows = []
    for claim in CLAIMS:
        judged = [
            [(f"study_{s.study.name}", judge_claim(claim, s)) for s in studies if claim.paper in s.study.papers]
            for studies in corpora
        ]
        if any(judged):
            rows.append((claim.id, claim.words, claim.range, *_cells(claim, judged)))
    return table(("", "the paper says", "confirmed by", *CORPORA.values()), rows)


def _rope(corpora: list[list[Results]]) -> str:
    """The question that neither paper asks, where most runs answer it."""
    found = [s for studies in corpora for s in studies if "A" in s.study.papers and rope_interaction(s)]
    if not found:
        return "Does RoPE rescue MLA, or help MHA just as much? No rows yet."
    most = max(found, key=lambda s: len(s.rows))
    return f"**Does RoPE rescue MLA, or help MHA just as much?**\n\n{claim_tables.rope(most)}"


def _cells(claim: Claim, judged: list[list[tuple[str, Judged]]]) -> list[str]:
    """What is found and the verdict, a cell a corpus; what depends on no corpus only in the first."""
    # Of several studies on one corpus, the one with most seeds has the verdict, and the others stand behind it.
    tested = [sorted((pair for pair in of if pair[1].test), key=lambda pair: -pair[1].test.found.n) for of in judged]
    if not any(tested):
        _, j = next(pair for of in judged for pair in of)
        return [f"{j.arithmetic + ': ' if j.arithmetic else ''}**{j.verdict}**", *("" for _ in judged[1:])]
    if claim.unit == "times":  # of decoding, whatever was learnt
        return [_cell(next(of for of in tested if of)[:1]), *("" for _ in judged[1:])]
    return [_cell(of) or "-" for of in tested]


def _cell(of: list[tuple[str, Judged]]) -> str:
    """The first study's verdict in bold, then what its other sizes and devices say, then the other studies."""
    parts = []
    for study, judged in of:
        bold = "" if parts else "**"
        where = f" ({study})" if len(of) > 1 else ""
        parts.append(_found(judged.claim, judged.test, where, f"{bold}{judged.verdict}{bold}", judged.verdict))
        parts += [_found(judged.claim, test, where, verdict, verdict) for _, test, verdict in judged.elsewhere]
    return "; ".join(parts)


def _found(claim: Claim, test: Evidence, where: str, shown: str, verdict: str) -> str:
    side = _side(claim, test.found.mean) if verdict == CONTRADICTED else ""
    return f"{claim_tables.measured(test.found, claim.unit)}: {test.what}{where}: {shown}{side}"


def _side(claim: Claim, mean: float) -> str:
    return f" ({_SIDES.get(claim.unit, ('less', 'more'))[mean > claim.high]} than claimed)"


def replaced(text: str, made: str) -> str:
    """`text` with the part from BEGIN to END replaced. Raises UserError when a mark is missing."""
    begin, end = text.find(BEGIN), text.find(END)
    if begin < 0 or end < begin:
        raise UserError(f"the file lacks the lines {BEGIN!r} and {END!r}, in this order: paste the printed block once.")
    return text[:begin] + made + text[end + len(END) :]


def _main(arguments: Sequence[str]) -> None:
    if not arguments:
        print(block())
        return
    path = Path(arguments[0])
    try:
        path.write_text(replaced(path.read_text(encoding="utf-8"), block()), encoding="utf-8")
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


if __name__ == "__main__":
    sys.exit(run_command(_main))
