"""Verdicts on the papers' claims: arithmetic first, then rows."""

import dataclasses
import math

from mla_jax.study.claims import CLAIMS, Claim
from mla_jax.study.evidence import Evidence
from mla_jax.study.results import Results

CONFIRMED, CONTRADICTED, UNDECIDED = "confirmed", "contradicted", "undecided"


@dataclasses.dataclass(frozen=True)
class Tested:
    """One test of a claim. place: its tier or device; verdict: by this evidence alone."""

    place: str
    evidence: Evidence
    verdict: str


@dataclasses.dataclass(frozen=True)
class Judged:
    """verdict: confirmed | contradicted | undecided | cannot be as stated, with a reason where that helps.

    tests: all there are, the one that the verdict goes by first.
    """

    claim: Claim
    arithmetic: str
    tests: tuple[Tested, ...]
    verdict: str

    @property
    def test(self) -> Evidence | None:
        return self.tests[0].evidence if self.tests else None


def judge(found: Results) -> list[Judged]:
    """Every claim of the study's papers, in the papers' order."""
    return [judge_claim(claim, found) for claim in CLAIMS if claim.paper in found.study.papers]


def judge_claim(claim: Claim, found: Results) -> Judged:
    """Arithmetic that decides is the verdict. Else an interval inside the claim's range confirms it, one outside
    contradicts it, and anything else leaves it open; so do devices that do not agree."""
    text, decided = claim.arithmetic() if claim.arithmetic else ("", None)
    first = claim.test(found) if claim.test else None
    if first is None:
        return Judged(claim, text, (), decided or _by_rows(claim, None, found))
    if of_speed := claim.unit == "times":
        parts = {device: found.on(device) for device in found.bench_devices}
    else:
        parts = {tier: found.only(tier) for tier in found.tiers}
    every = [(place, e) for place, part in parts.items() if (e := claim.test(part))]
    if not every:  # no tier has all of it
        return Judged(claim, text, (), decided or _by_rows(claim, None, found))
    every.sort(key=lambda pair: pair[1].what != first.what)
    tests, seen = [], set()
    for place, e in every:
        if e.what not in seen:
            tests.append(Tested(place, e, _by_rows(claim, e, found)))
        seen.add(e.what)
    verdict = tests[0].verdict
    if of_speed and len({test.verdict for test in tests}) > 1:
        verdict = f"{UNDECIDED}: devices differ"
    return Judged(claim, text, tuple(tests), decided or verdict)


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
