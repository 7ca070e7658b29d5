"""The report's answers to the papers: a line a claim, and the question that neither paper asks."""

import math

from mla_jax.markdown import table
from mla_jax.study import evidence
from mla_jax.study.evidence import Evidence
from mla_jax.study.results import Results
from mla_jax.study.stats import Estimate
from mla_jax.study.verdicts import Judged, judge

SCALE = (
    "Figures are at the scale above, a small part of the papers' training: a verdict is about the claim at this scale. "
    "Confirmed: the 95 % interval lies inside the claim's range; contradicted: outside of it; undecided: across its "
    "border. The range stands behind the claim: a quarter of the claimed change to either side (of per cents half a "
    "point at least), a range of the paper's own, or, of words without a figure, one end. Where two sizes can judge a "
    "claim, the one with more seeds has the verdict in bold, of equals the larger; a speed on which devices differ is "
    "undecided. The others stand behind it. Smallest: the difference from nothing that as many seeds with this scatter "
    "would show four times out of five. Seeds: the single differences. Intervals are Student's t, for scatter like a "
    "bell; where a run either learns to recall or does not (the plot of loss over recall), three to five seeds that "
    "all did, or one that did not, say less than their interval. Of a point with several learning rates the first "
    "seed, which chose among them, counts too."
)


def claims(found: Results) -> str:
    """What the paper says, what arithmetic says, what we measured, the verdict.

    A study too small to judge shows only the claims that its training runs test.
    """
    rows, every = [], judge(found)
    shown = every if found.study.verdicts else [j for j in every if j.tests and j.claim.unit != "times"]
    for judged in shown:
        claim = judged.claim
        rows.append(
            (
                claim.id,
                f"{claim.words} [{claim.known}]" + (f"; range {claim.range}" if claim.range else ""),
                judged.arithmetic or "-",
                "; ".join(_evidence(test.evidence, claim.unit) for test in judged.tests) or "-",
                _smallest(judged),
                _verdicts(judged),
            )
        )
    head = ("", "the paper says", "arithmetic says", "we measured (mean, 95 % interval, n)", "smallest", "verdict")
    left_out = len(every) - len(shown)
    note = f"\n\nNot shown, since no training run here tests them: {left_out} claims." if left_out else ""
    return f"{SCALE}\n\n{table(head, rows)}{note}"


def _verdicts(judged: Judged) -> str:
    """The verdict, and what tests say that are not the one it goes by."""
    others = [test for test in judged.tests if len(judged.tests) > 1 and test.verdict != judged.verdict]
    return "; ".join((f"**{judged.verdict}**", *(f"{test.place}: {test.verdict}" for test in others)))


def _evidence(test: Evidence, unit: str) -> str:
    seeds = ""
    if len(test.found.values) > 1:
        seeds = f" (seeds: {', '.join(f'{value:{_sign(unit)}.2f}' for value in test.found.values)})"
    return f"{measured(test.found, unit)}: {test.what}, {test.where}{seeds}"


def _sign(unit: str) -> str:
    return "" if unit == "times" or unit.endswith("steps") else "+"


def measured(found: Estimate, unit: str, digits: int = 2, says_unit: bool = True) -> str:
    """ "+0.31 [-0.20, +0.82], n=3 (% of loss)"; of a speed the interval is the range of its timings.

    says_unit: False where the table says the unit, and what a speed's interval is.
    """
    behind = f" ({unit})" if unit and says_unit else ""
    if math.isinf(found.mean):
        return f"not reached in every run, n={found.n}{behind}"
    sign = _sign(unit)
    text = f"{found.mean:{sign}.{digits}f}"
    if not math.isnan(found.low):
        text += f" [{found.low:{sign}.{digits}f}, {found.high:{sign}.{digits}f}]"
    if unit == "times":
        return f"{text} times (the range of {found.n} timings of one process)" if says_unit else text
    return f"{text}, n={found.n}{behind}"


def _smallest(judged: Judged) -> str:
    if judged.test is None or math.isnan(judged.test.found.detectable):
        return "-"
    return f"{judged.test.found.detectable:.2f}"


def rope(found: Results) -> str:
    """Gains from RoPE in both families, and their difference."""
    answers = evidence.rope_interaction(found)
    if not answers:
        return "No rows yet: it needs MHA and MLA with learned and with rotary positions, on equal seeds."
    rows = [
        (form, *(measured(test.found, "") for test in tests), _answer(tests[2].found, found.study.verdicts))
        for form, *tests in answers
    ]
    head = ("MLA is", "RoPE's effect on MHA's loss, %", "on MLA's loss, %", "difference", "answer")
    return table(head, rows)


def _answer(difference: Estimate, verdicts: bool) -> str:
    if not verdicts:
        return "not judged: the study is too small"
    if math.isnan(difference.low):
        return "undecided: one seed"
    if difference.high < 0:
        return "RoPE does more for MLA"
    if difference.low > 0:
        return "RoPE does more for MHA"
    return f"undecided; a difference of {difference.detectable:.2f} points would have been seen"
