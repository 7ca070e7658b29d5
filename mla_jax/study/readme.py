"""Blocks of pages that are made from the rows of the repository: python -m mla_jax.study.readme [FILE ...]

*verdicts*, of README.md: a verdict for every claim; *tables*, of docs/results/README.md: the headline points of every
study. In each file the text between the marks of a block is replaced; without files the blocks are printed.
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
from mla_jax.study.evidence import rope_interaction
from mla_jax.study.grid import Study, from_config_dict
from mla_jax.study.results import Measured, Results, collect, reference_of, relative
from mla_jax.study.rows import Rows, best_loss, gather, model_of
from mla_jax.study.stats import estimate
from mla_jax.study.verdicts import CONTRADICTED, Judged, Tested, judge_claim

BEGIN = "<!-- {}: made by python -m mla_jax.study.readme README.md docs/results/README.md -->"
END = "<!-- end of {} -->"
CORPORA = {"": "we find: embedded stories, arithmetic or speed", ":files": "20,000 TinyStories"}  # study's form: column
SEEDS = 3  # that one point of a table needs
_WORSE = ("better", "worse")
# Below a claim's range, above it.
_SIDES = {"% of loss": _WORSE, "% of perplexity": _WORSE, "times": ("slower", "faster")}
_SIDES["% of the steps"] = ("faster", "slower")


def blocks(rows: Rows | None = None) -> dict[str, str]:
    """Each block with its marks, by name. rows: default, those of the repository."""
    rows = gather(None) if rows is None else rows
    corpora = [[collect(study, rows) for study in declared(form) if study.verdicts] for form in CORPORA]
    every = {id(row): row for studies in corpora for found in studies for row in found.rows}  # studies share rows
    minutes = tables.device_minutes(tuple(every.values()))
    used = f"All of it: {minutes}.\nA run that was trained twice counts once, and calls that were killed do not count."
    made = {"verdicts": [_verdicts(corpora), _rope(corpora), used], "tables": _headlines(corpora)}
    return {name: "\n\n".join([BEGIN.format(name), *parts, END.format(name)]) for name, parts in made.items()}


def _headlines(corpora: list[list[Results]]) -> list[str]:
    shown = [(found, _rows_of(found)) for studies in corpora for found in studies]
    shown.sort(key=lambda pair: (pair[0].study.papers, pair[0].study.name))
    # Studies share rows: of two tables one may be a part of the other.
    headlines = [_headline(found) for found, own in shown if own and not any(own < other for _, other in shown)]
    return [text for text in headlines if text]


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
    page = f"study_{found.study.name}/report.md"
    link = f"[report]({page}); " if (config_dir().parent / "docs" / "results" / page).is_file() else ""
    model = points[0].any["config"]["config"]["model"]
    recipe = f"{tables.size_and_steps(points[0].any)}, block={model['block']}, dropout {model['dropout']:g}"
    how = f"{recipe}, {_rates(points)}; best evaluation, mean ± 95 %, seeds"
    return f"## {found.study.title}\n\n({link}{devices}; {how})\n\n{table(head, rows)}"


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
        judged = [[judge_claim(claim, s) for s in studies if claim.paper in s.study.papers] for studies in corpora]
        if any(judged):
            unit = f" {claim.unit}" if claim.range else ""
            rows.append((claim.id, claim.words, claim.range + unit, *_cells(claim, judged)))
    return table(("", "the paper says", "confirmed by", "verdict", *CORPORA.values()), rows)


def _rope(corpora: list[list[Results]]) -> str:
    """The question that neither paper asks, where most runs answer it."""
    found = [s for studies in corpora for s in studies if "A" in s.study.papers and rope_interaction(s)]
    if not found:
        return "Does RoPE rescue MLA, or help MHA just as much? No rows yet."
    most = max(found, key=lambda s: len(s.rows))
    return f"**Does RoPE rescue MLA, or help MHA just as much?**\n\n{claim_tables.rope(most)}"


def _cells(claim: Claim, judged: list[list[Judged]]) -> list[str]:
    """The verdict, and what is found, a cell a corpus; what depends on no corpus only in the first."""
    # Of several studies on one corpus, the one with most seeds has the verdict, and the others stand behind it.
    tested = [sorted((j for j in of if j.test), key=lambda j: -j.test.found.n) for of in judged]
    if not any(tested):
        j = next(j for of in judged for j in of)
        return [f"**{j.verdict}**", j.arithmetic, *("" for _ in judged[1:])]
    if claim.unit == "times":  # of decoding, whatever was learnt
        return [*_found(next(of for of in tested if of)[:1]), *("" for _ in judged[1:])]
    verdict, found = _found(tested[0]) if tested[0] else ("-", "-")
    others = [_found(of) if of else ("", "-") for of in tested[1:]]
    return [verdict, found, *(f"{own}<br>{text}" if own else text for own, text in others)]


def _found(studies: list[Judged]) -> tuple[str, str]:
    """The first study's verdict in bold, and a line for every test of every study: what it says where that differs."""
    claim, verdict = studies[0].claim, studies[0].verdict
    for test in studies[0].tests:
        if test.verdict == verdict:
            verdict = _words(claim, test)
            break
    lines = []
    for test in (test for judged in studies for test in judged.tests):
        shown = claim_tables.measured(test.evidence.found, claim.unit, says_unit=False)
        said = _words(claim, test)
        lines.append(f"{test.evidence.where}: {shown}" + (f", {said}" if said != verdict else ""))
    return f"**{verdict}**", "<br>".join(lines)


def _words(claim: Claim, test: Tested) -> str:
    return test.verdict + (_side(claim, test.evidence.found.mean) if test.verdict == CONTRADICTED else "")


def _side(claim: Claim, mean: float) -> str:
    return f" ({_SIDES.get(claim.unit, ('less', 'more'))[mean > claim.high]} than claimed)"


def replaced(text: str, made: dict[str, str]) -> str:
    """`text` with each block that it has the marks of made again. Raises UserError when it has those of none."""
    found = text
    for name, block in made.items():
        begin, end = found.find(BEGIN.format(name)), found.find(END.format(name))
        if 0 <= begin < end:
            found = found[:begin] + block + found[end + len(END.format(name)) :]
            continue
        if begin >= 0 or end >= 0:
            raise UserError(f"of the block {name} one mark is missing, or they are not in order: paste the block anew.")
    if not any(END.format(name) in text for name in made):
        raise UserError(
            f"the file has no lines {BEGIN.format('verdicts')!r} and {END.format('verdicts')!r}: paste a block."
        )
    return found


def _main(arguments: Sequence[str]) -> None:
    made = blocks()
    if not arguments:
        print("\n\n".join(made.values()))
    for path in map(Path, arguments):
        try:
            path.write_text(replaced(path.read_text(encoding="utf-8"), made), encoding="utf-8")
        except UserError as error:
            raise UserError(f"{path}: {error}") from None


if __name__ == "__main__":
    sys.exit(run_command(_main))
