"""The papers' claims as data: their words, how well we know them, what arithmetic says, and which rows test them.

Sources: A arXiv 2506.09342, B 2508.01261, C 2509.24406. `known`: abstract; quoted (by readers of the full text).
A claim's `low` and `high` bound what we still call the same finding: of one figure a quarter of the claimed change to
either side (of "1.4 times" a quarter of 0.4), of per cents at least half a point; of a range of the paper's own, that
range; of words without a figure one end alone.
Paper A's latents are per head, paper B's are joint; B's loss and speed are tested with a rotary key of 32 numbers, half
as wide as the one that saves 68 %.
"""

import dataclasses
import math
from collections.abc import Callable

from mla_jax.study import arithmetic
from mla_jax.study import evidence as tests
from mla_jax.study.evidence import Evidence
from mla_jax.study.results import Results

INFINITE = math.inf


@dataclasses.dataclass(frozen=True)
class Claim:
    """arithmetic: () -> (what follows without training, a verdict or None). test: rows -> Evidence or None."""

    id: str
    paper: str
    words: str
    known: str
    low: float
    high: float
    unit: str
    arithmetic: Callable[[], tuple[str, str | None]] | None
    test: Callable[[Results], Evidence | None] | None

    @property
    def range(self) -> str:
        """What confirms it: "-0.2 to 0.8"; "" where no figure does."""
        if self.test is None:
            return ""
        if math.isinf(self.low) or math.isinf(self.high):
            return f"at most {self.high:g}" if math.isinf(self.low) else f"at least {self.low:g}"
        return f"{self.low:g} to {self.high:g}"


def _loss(id_: str, paper: str, words: str, known: str, value: float, variant: str, reference: str = "mha") -> Claim:
    """A claim about a relative difference of validation losses, `value` per cent."""
    margin = max(0.5, abs(value) / 4)
    test = tests.loss_difference(variant, reference)
    return Claim(id_, paper, words, known, value - margin, value + margin, "% of loss", None, test)


CLAIMS = (
    Claim("A1", "A", "r = d/2 saves 45 % of the KV cache", "abstract", 0, 0, "", arithmetic.cache_45, None),
    Claim("A2", "A", "r = d/4 saves 72 % of the KV cache", "quoted", 0, 0, "", arithmetic.cache_72, None),
    Claim("A3", "A", "MHA takes 0.0288 MB a token", "quoted", 0, 0, "", arithmetic.megabytes, None),
    _loss("A4", "A", "MLA+RoPE at r = d/2 loses 0.3 % against MHA", "abstract", 0.3, "per_head_rope_r2"),
    Claim(
        "A5", "A", "the best MLA+RoPE is 2 % better than MHA", "abstract", -2.5, -1.5, "% of loss", None,
        tests.best_difference("per_head_rope_r", "mha"),
    ),
    Claim(
        "A6", "A", "MLA without RoPE is 3-5 % worse than MHA (r = d/2)", "abstract", 3, 5, "% of loss", None,
        tests.loss_difference("per_head_learned_r2", "mha"),
    ),
    _loss("A7", "A", "full-rank MLA without RoPE is 3.2 % worse than MHA", "quoted", 3.2, "per_head_learned_r1"),
    _loss("A8", "A", "MLA+RoPE at r = d/4 is 4.4 % worse than MHA", "quoted", 4.4, "per_head_rope_r4"),
    _loss("A9", "A", "MLA+RoPE at r = d/8 is 10.3 % worse than MHA", "quoted", 10.3, "per_head_rope_r8"),
    Claim(
        "A10", "A", "below r = d/16 a phase transition: severe loss", "abstract", 2, INFINITE,
        "points more from d/16 to d/32 than from d/8 to d/16", None, tests.cliff("per_head_rope", "mha"),
    ),
    Claim(
        "A11", "A", "r = d/2 decodes 1.4 times as fast as full-rank MLA", "abstract", 1.3, 1.5, "times",
        arithmetic.speed_14, tests.speed("per_head r=d/2", "per_head r=d"),
    ),
    Claim("A12", "A", "GPT-4 grades MLA+RoPE 7.4, MHA 6.2 of 10", "abstract, quoted", 0, 0, "", None, None),
    Claim("B1", "B", "r = d/2 saves 68 % of the KV cache", "abstract", 0, 0, "", arithmetic.cache_68, None),
    Claim(
        "B2", "B", "r = d/2 decodes 3.2 times as fast", "abstract", 2.65, 3.75, "times", arithmetic.speed_32,
        tests.speed("mla r=d/2", "mha_rope"),
    ),
    Claim(
        "B3", "B", "r = d/2 costs 0.8 % of perplexity", "abstract", 0.3, 1.3, "% of perplexity", None,
        tests.perplexity_difference("mla_rope", "mha"),
    ),
    _loss("B4", "B", "parameter-matched MoE-MLA-RoPE: 6.9 % better than MHA", "abstract", -6.9, "moe_mla_rope"),
    Claim("B5", "B", "with 42 % fewer active parameters", "abstract", 0, 0, "", arithmetic.active_42, None),
    _loss("B6", "B", "FLOP-matched MoE-MLA-RoPE: 11.1 % better", "abstract", -11.1, "moe_mla_rope_flops"),
    Claim("B7", "B", "micro-experts of 1/4 feed-forward, 8 active, at fewer active parameters", "quoted", 0, 0, "",
          arithmetic.twice_dense, None),
    Claim("B8", "B", "C(62, 6) = 3.6e7 ways to combine experts", "quoted", 0, 0, "", arithmetic.combinations, None),
    Claim("B9", "B", "GPT-4 grades: coherence 8.1, creativity 7.9, grammar 8.2", "abstract", 0, 0, "", None, None),
    Claim(
        "C1", "C", "Muon reaches AdamW's loss with 48-52 % of the compute", "abstract", 48, 52, "% of the steps", None,
        tests.share_of_steps("muon", "adamw"),
    ),
    Claim(
        "C2", "C", "Muon's final perplexity is equal or better", "abstract", -INFINITE, 0.5, "% of loss", None,
        tests.loss_difference("mla_rope_muon", "mla_rope_adamw"),
    ),
)  # fmt: skip
