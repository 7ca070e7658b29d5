"""A study as data: the bridge from its ConfigDict to frozen `Study`, and from a point to the Config of a run."""

import dataclasses
import functools
from typing import Any

from ml_collections import ConfigDict

from mla_jax import config_bounds
from mla_jax.config import Config
from mla_jax.config_files import load_config
from mla_jax.errors import UserError
from mla_jax.typed import build, suggest

PAPERS = ("A", "B", "C")
SEEDS_AT_MOST = 2**32 - 1


@dataclasses.dataclass(frozen=True)
class Tier:
    """What the points of a tier share; see `declare.tier`. knobs: ((dotted name, value), ...)."""

    name: str
    size: str
    learning_rates: tuple[float, ...]
    lengths: tuple[int, ...]
    fact_stories: int
    stories: int
    knobs: Any


@dataclasses.dataclass(frozen=True)
class Point:
    """One row of a table; see `declare.point`. learning_rates: the point's own, else the tier's; () = as configured."""

    name: str
    config: str
    tier: str
    seeds: tuple[int, ...]
    priority: int
    needs: str
    learning_rates: tuple[float, ...]
    knobs: Any

    @property
    def available(self) -> bool:
        """Whether this mla_jax has what the point needs."""
        knob, _, value = self.needs.partition("=")
        return not self.needs or value in config_bounds.CHOICES.get(knob, ())


@dataclasses.dataclass(frozen=True)
class Study:
    """A whole study, checked: every available point makes valid configs. Settings: configs/study_base.py.

    knobs: ((dotted name, value), ...) of every run; tiers: (Tier, ...); points: (Point, ...), without those
    that `only` leaves out.
    """

    name: str
    title: str
    papers: tuple[str, ...]
    verdicts: bool
    reference: str
    knobs: Any
    tiers: Any
    points: Any
    only: tuple[str, ...]
    keep_checkpoints: bool
    plan_device: str
    plan_flops: float
    plan_step_s: float
    plan_experts: float
    plan_overhead_s: float

    def tier_of(self, point: Point) -> Tier:
        return next(tier for tier in self.tiers if tier.name == point.tier)

    def config(self, point: Point, seed: int, learning_rate: float | None = None) -> Config:
        """The config of one run, before its tokenizer is known. Raises UserError for knobs that break a rule."""
        tier = self.tier_of(point)
        knobs = dict(self.knobs) | dict(tier.knobs) | dict(point.knobs) | {"train.seed": seed}
        if learning_rate is not None:
            knobs["optim.learning_rate"] = learning_rate
        try:
            return _load(f"{point.config}:{tier.size}" if tier.size else point.config, tuple(knobs.items()))
        except UserError as error:
            raise UserError(f"study {self.name}, point {point.name}: {error}") from None


@functools.lru_cache(maxsize=4096)  # a plan is made again after every run
def _load(name: str, knobs: tuple[tuple[str, Any], ...]) -> Config:
    return load_config(name, **dict(knobs))


def from_config_dict(config_dict: ConfigDict) -> Study:
    """The bridge. Raises UserError for what is missing, unknown, of a wrong type, or makes no valid config."""
    content = config_dict.to_dict()
    if not {"points", "tiers", "common"} <= content.keys():
        raise UserError(
            "--config is no study (it has no points, tiers and common): for --mode study use study_smoke, "
            "study_paper_a, ... or a file made like configs/study_smoke.py."
        )
    values = {
        "knobs": _flat(content.pop("common"), "common"),
        "tiers": tuple(
            _build(Tier, tier, f"tiers.{name}.", name) for name, tier in _section(content.pop("tiers"), "tiers")
        ),
        "points": tuple(
            _build(Point, point, f"points.{name}.", name) for name, point in _section(content.pop("points"), "points")
        ),
    }
    study = build(Study, content | values, prefix="")
    _check(study)
    return _only(study)


def _only(study: Study) -> Study:
    """The study without the points that its `only` does not name. Raises UserError for a name that is no point."""
    names = [point.name for point in study.points]
    for name in study.only:
        if name not in names:
            raise UserError(
                f"only has {name!r}, which is no point{suggest(name, names)}: --dry_run without it lists all."
            )
    kept = tuple(point for point in study.points if point.name in study.only)
    return dataclasses.replace(study, points=kept) if study.only else study


def _build(cls: type, content: Any, prefix: str, name: str) -> Any:
    if not isinstance(content, dict) or not isinstance(content.get("set"), dict):
        raise UserError(f"{prefix.rstrip('.')} is {content!r}; add it with mla_jax.study.declare.")
    content = {key: value for key, value in content.items() if key != "set"} | {
        "name": name,
        "knobs": _flat(content["set"], f"{prefix}set"),
    }
    return build(cls, content, prefix=prefix)


def _section(content: Any, name: str) -> list[tuple[str, Any]]:
    if not isinstance(content, dict) or not content:
        raise UserError(f"{name} is {content!r}; a study needs at least one: add it with mla_jax.study.declare.")
    return list(content.items())


def _flat(content: dict[str, Any], prefix: str) -> tuple[tuple[str, Any], ...]:
    if not isinstance(content, dict):
        raise UserError(f"{prefix} is {content!r}; it must be a section of knobs.")
    flat = []
    for section, values in content.items():
        if isinstance(values, dict):
            flat += [(f"{section}.{name}", value) for name, value in values.items()]
        else:
            flat.append((section, values))
    return tuple((name, tuple(value) if isinstance(value, list) else value) for name, value in flat)


def _check(study: Study) -> None:
    names = [point.name for point in study.points]
    tiers = [tier.name for tier in study.tiers]
    if wrong := [paper for paper in study.papers if paper not in PAPERS]:
        raise UserError(
            f"papers has {wrong[0]!r}; it must be some of {', '.join(PAPERS)}: see mla_jax/study/claims.py."
        )
    for field, name in [("name", study.name), *((f"points.{name}", name) for name in names)]:
        if not name or not name.isprintable() or set(name) & set("/\\*?[] "):  # a path would leave the study's folder
            raise UserError(f"{field} is {name!r}; it names files: use letters, digits, '_' and '-'.")
    if not any(study.reference in (name, name.partition("_")[2]) for name in names):
        near = suggest(study.reference, names)
        raise UserError(f"reference is {study.reference!r}, which is no point{near}: use the name of one.")
    for field, low in (("plan_flops", 1.0), ("plan_step_s", 0.0), ("plan_experts", 1.0), ("plan_overhead_s", 0.0)):
        if not low <= getattr(study, field) < float("inf"):
            raise UserError(
                f"{field} is {getattr(study, field)!r}; it must be {low:g} or more and finite: see study_base."
            )
    for where, rates in [(f"tiers.{t.name}", t.learning_rates) for t in study.tiers] + [
        (f"points.{p.name}", p.learning_rates) for p in study.points
    ]:
        if len(set(rates)) < len(rates):
            raise UserError(f"{where}.learning_rates is {rates!r}; each is trained once: list different ones.")
    for tier in study.tiers:
        if not tier.lengths or min(tier.lengths) < 1 or tier.fact_stories < 0 or tier.stories < 1:
            raise UserError(f"tiers.{tier.name}: lengths and stories count from 1, fact_stories from 0: raise them.")
    for point in study.points:
        _check_point(study, point, tiers)
    _check_equal(study)


def _check_point(study: Study, point: Point, tiers: list[str]) -> None:
    where = f"points.{point.name}"
    if point.tier not in tiers:
        raise UserError(f"{where}.tier is {point.tier!r}, which is no tier: use one of {', '.join(tiers)}.")
    if (
        not point.seeds
        or len(set(point.seeds)) != len(point.seeds)
        or not all(0 <= seed <= SEEDS_AT_MOST for seed in point.seeds)
    ):
        raise UserError(f"{where}.seeds is {point.seeds!r}; it must list different seeds: e.g. (0, 1, 2).")
    if point.needs and "=" not in point.needs:
        raise UserError(f"{where}.needs is {point.needs!r}; it must be knob=value: e.g. model.ffn=moe.")
    if point.available:
        for rate in point.learning_rates or study.tier_of(point).learning_rates or (None,):
            study.config(point, point.seeds[0], rate)


# What no comparison of a study may differ in.
_EQUAL = ("data", "tokenizer", "model.dropout", "model.block", "train.on_nonfinite")


def _check_equal(study: Study) -> None:
    seen: dict[str, tuple[str, Any]] = {}
    for point in study.points:
        if not point.available:
            continue
        config = study.config(point, point.seeds[0])
        for field in _EQUAL:
            value = config_bounds.get(config, field)
            first, other = seen.setdefault(field, (point.name, value))
            if value != other:
                raise UserError(
                    f"points.{point.name} has another {field} ({value!r}) than points.{first} ({other!r}): points of "
                    "one study are compared, so set it in common or for every tier alike."
                )
