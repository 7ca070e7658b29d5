"""What the files configs/study_*.py are written with: `new`, `tier`, `point`."""

from collections.abc import Iterable
from typing import Any

from ml_collections import ConfigDict

from mla_jax.config_files import load_config_dict


def new(name: str, title: str, **settings: Any) -> ConfigDict:
    """The ConfigDict of configs/study_base.py under another name, some of its settings changed."""
    c = load_config_dict("study_base")
    c.update({"name": name, "title": title} | settings)
    return c


def common(c: ConfigDict, knobs: dict[str, Any]) -> None:
    """Set dotted training knobs for every run of the study."""
    _put(c.common, knobs)


def tier(
    c: ConfigDict,
    name: str,
    size: str,
    knobs: dict[str, Any],
    learning_rates: Iterable[float] = (),
    lengths: Iterable[int] = (1,),
    fact_stories: int = 0,
    stories: int = 2,
) -> None:
    """Add a tier.

    learning_rates: seed 0 of a point is trained with each, the other seeds with the best; () = the knob as it is.
    lengths: multiples of train.seq_len at which loss by position is measured, where the positions allow it.
    fact_stories: held-out embedded stories whose fact questions are put. stories: samples kept in a row.
    """
    settings = ConfigDict(
        {
            "size": size,
            "learning_rates": tuple(learning_rates),
            "lengths": tuple(lengths),
            "fact_stories": fact_stories,
            "stories": stories,
            "set": {},
        }
    )
    _put(settings.set, knobs)
    with c.unlocked():
        c.tiers[name] = settings


def point(
    c: ConfigDict,
    name: str,
    config: str,
    tier: str,
    knobs: dict[str, Any] | None = None,
    seeds: Iterable[int] = (0,),
    priority: int = 5,
    needs: str = "",
    learning_rates: Iterable[float] = (),
) -> None:
    """Add a point: `config` of the tier's size with `knobs` set.

    priority: small ones run first; within one priority, each point's first seed comes before any point's second.
    needs: "knob=value" without which the point waits, shown and skipped, for a newer mla_jax.
    learning_rates: in place of the tier's.
    """
    settings = ConfigDict(
        {
            "config": config,
            "tier": tier,
            "seeds": tuple(seeds),
            "priority": priority,
            "needs": needs,
            "learning_rates": tuple(learning_rates),
            "set": {},
        }
    )
    _put(settings.set, knobs or {})
    with c.unlocked():
        if name in c.points:
            raise ValueError(f"the point {name!r} is declared twice")
        c.points[name] = settings


def _put(target: ConfigDict, knobs: dict[str, Any]) -> None:
    with target.unlocked():
        for dotted, value in knobs.items():
            section, _, field = dotted.rpartition(".")
            if section and section not in target:
                target[section] = ConfigDict()
            with target.ignore_type():
                (target[section] if section else target)[field] = value
