"""Verdicts on the papers' claims: arithmetic first, then rows."""

import dataclasses
import math

from mla_jax.study.claims import CLAIMS, Claim
from mla_jax.study.evidence import Evidence
from mla_jax.study.results import Results

CONFIRMED, CONTRADICTED, UNDECIDED = "confirmed", "contradicted", "undecided"


@dataclasses.dataclass(frozen=True)
class Judged:
    """verdict: confirmed | contradicted | undecided | cannot be as stated, with a reason where that helps.

    elsewhere: (tier or device, evidence, verdict) of the others that can test the claim.
    """

    claim: Claim
    arithmetic: str
    test: Evidence | None
    verdict: str
    elsewhere: tuple[tuple[str, Evidence, str], ...] = ()


def judge(found: Results) -> list[Judged]:
    """Every claim of the study's papers, in the papers' order."""
    return [judge_claim(claim, found) for claim in CLAIMS if claim.paper in found.study.papers]


def judge_claim(claim: Claim, found: Results) -> Judged:
    """Arithmetic that decides is the verdict. Else an interval inside the claim's range confirms it, one outside
    contradicts it, and anything else leaves it open."""
    text, decided = claim.arithmetic() if claim.arithmetic else ("", None)
    test = claim.test(found) if claim.test else None
    tests = {tier: claim.test(found.only(tier)) for tier in found.tiers} if test else {}
    if test:  # of speeds, which have devices instead of tiers
        tests |= {device: claim.test(found.on(device)) for device in found.bench_devices}
    others = {tier: e for tier, e in tests.items() if e and e.what != test.what}
    elsewhere = tuple((tier, e, _by_rows(claim, e, found)) for tier, e in others.items())
    return Judged(claim, text, test, decided or _by_rows(claim, test, found), elsewhere)


def _by_rows(claim: Claim, test: Evidence | None, found: Results) -> str:
    if claim.test is None:
        return f"{UNDECIDED}: needs --mode judge with a strong judge"
    if test is None:
        return f"{UNDECIDED}: no rows yet"
    if not found.study.verdicts:
        return "not judged: the study is too small"
    estimate = test.found
    if math.isnan(estimate.low):
        reason = "one measurement has no interval" if math.isfinite(estimate.mean) else "not reached in every run"
        return f"{UNDECIDED}: {reason}"
    if estimate.low >= claim.low and estimate.high <= claim.high:
        return CONFIRMED
    if estimate.high < claim.low or estimate.low > claim.high:
        return CONTRADICTED
    return f"{UNDECIDED}: across the range's border"
