"""What a judge run is told to do. Defaults live in configs/base.py; every rule about a value lives here."""

import dataclasses
import math
import typing
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

from mla_jax.errors import UserError
from mla_jax.judge.controls import MIN_STORIES
from mla_jax.judge.rubric import get_rubric
from mla_jax.typed import suggest

OPENAI_URL = "https://api.openai.com/v1"
# What may differ when a stopped run continues: how it is asked, never what is asked.
_FREE = frozenset(
    ["base_url", "concurrency", "timeout_s", "max_retries", "give_up_after", "budget_usd"]
    + ["price_in", "price_out", "yes", "cache_dir", "resamples"]
)


@dataclasses.dataclass(frozen=True)
class JudgeSettings:
    """The `judge` section of a config. Prices are US dollars per million tokens, times are seconds."""

    base_url: str  # OpenAI-compatible endpoint, ending in /v1; "" = api.openai.com
    model: str  # the judge, by the endpoint's name
    rubric: str
    num_prompts: int  # beginnings a run completes: held-out first sentences and built-in openings
    builtin_prompts: int  # how many of num_prompts come from the built-in list (at most 50)
    stories_per_prompt: int
    max_new_tokens: int  # length of a sampled story
    temperature: float  # of the story model, not of the judge
    top_k: int  # of the story model; 0 = off
    seed: int
    num_controls: int  # held-out stories that are judged whole and in each damaged form
    repeats: int  # times that a repeated story is judged; 1 = no repeats
    repeat_share: float  # share of the stories that is judged `repeats` times
    pairwise: bool  # also compare every two runs, in both orders
    judge_temperature: float
    max_reply_tokens: int
    concurrency: int
    timeout_s: float  # of one request, from sending to the last byte
    max_retries: int
    give_up_after: int  # judgements in a row that fail for want of an answer before the run stops
    budget_usd: float
    price_in: float
    price_out: float
    yes: bool  # do not ask before spending
    cache_dir: str  # replies already paid for; "" = the user's cache folder
    resamples: int  # bootstrap and permutation resamples in the report

    def url(self) -> str:
        return (self.base_url or OPENAI_URL).rstrip("/")

    def is_local(self) -> bool:
        """Whether the endpoint is on this machine; such a server seldom wants a key."""
        return urlsplit(self.url()).hostname in ("localhost", "127.0.0.1", "::1", "0.0.0.0")

    def public_url(self) -> str:
        """The endpoint without user, password and query, which may be secrets."""
        parts = urlsplit(self.url())
        port = f":{parts.port}" if parts.port else ""
        host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
        return f"{parts.scheme}://{host}{port}{parts.path}"

    def study(self) -> dict:
        """The settings that decide what is judged and how; a run that continues must agree with all of
        them.
        """
        return {k: v for k, v in dataclasses.asdict(self).items() if k not in _FREE}


def knobs(pairs: Sequence[str]) -> dict[str, Any]:
    """{"max_reply_tokens": 600} of ["max_reply_tokens=600"]. Raises UserError for no such knob or no such value."""
    kinds = typing.get_type_hints(JudgeSettings)
    values: dict[str, Any] = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if name not in kinds or not equals:
            raise UserError(
                f"--judge_knob is {pair!r}, which sets no knob{suggest(name, kinds, cutoff=0.4)}: write NAME=VALUE "
                "with a name of configs/base.py's judge section."
            )
        kind = kinds[name]
        try:
            values[name] = {"true": True, "false": False}[text.lower()] if kind is bool else kind(text)
        except (ValueError, KeyError):
            raise UserError(
                f"--judge_knob is {pair!r}; judge.{name} must be of type {kind.__name__}: correct it."
            ) from None
    return values


_WHOLE = {  # lowest and highest value
    "num_prompts": (1, 100_000),
    "builtin_prompts": (0, 50),
    "stories_per_prompt": (1, 1000),
    "max_new_tokens": (1, 100_000),
    "top_k": (0, 10**9),
    "seed": (0, 2**32 - 1),
    "num_controls": (MIN_STORIES, 100_000),
    "repeats": (1, 100),
    "max_reply_tokens": (16, 100_000),
    "concurrency": (1, 1000),
    "max_retries": (0, 100),
    "give_up_after": (1, 10**9),
    "resamples": (200, 100_000),
}
_NUMBERS = {
    "temperature": (0, 10),
    "judge_temperature": (0, 2),
    "repeat_share": (0, 1),
    "timeout_s": (0.01, 86_400),
    "price_in": (0, 1e6),
    "price_out": (0, 1e6),
}


def validate(s: JudgeSettings) -> None:
    """Raises UserError, one sentence, for the first setting that breaks a rule."""
    get_rubric(s.rubric)
    if not s.model:
        raise _refused(s, "model", "the judge's name", "one of BASE_URL/models, e.g. by --judge_model gpt-4o-mini")
    if not _is_url(s):
        raise _refused(s, "base_url", "the address of a server", f"one like http://localhost:11434/v1 or {OPENAI_URL}")
    for name, (low, high) in _WHOLE.items():
        value = getattr(s, name)
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise _refused(s, name, f"a whole number from {low} to {high}", "such a number")
    for name, (low, high) in _NUMBERS.items():
        value = getattr(s, name)
        if not isinstance(value, int | float) or not math.isfinite(value) or not low <= value <= high:
            raise _refused(s, name, f"a number from {low} to {high}", "such a number")
    if not s.budget_usd > 0:
        dollars = "the dollars that may be spent (any positive number for a free local server)"
        raise _refused(s, "budget_usd", "above 0", dollars)
    if s.stories_per_prompt > 1 and s.temperature == 0:
        rule = "1 where judge.temperature is 0, which tells the same story each time"
        raise _refused(s, "stories_per_prompt", rule, "1, or judge.temperature above 0")
    if s.builtin_prompts > s.num_prompts:
        rule = f"at most judge.num_prompts ({s.num_prompts}), of which it is a part"
        raise _refused(s, "builtin_prompts", rule, f"{s.num_prompts} or less")


def _refused(s: JudgeSettings, name: str, rule: str, remedy: str) -> UserError:
    """rule: what it must be; remedy: what to set it to."""
    return UserError(f"judge.{name} is {getattr(s, name)!r}; it must be {rule}: set judge.{name} to {remedy}.")


def _is_url(s: JudgeSettings) -> bool:
    try:
        parts = urlsplit(s.url())
        return parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        return False
