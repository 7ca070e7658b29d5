"""From a plot to the plan of one story: threads closed, a sub-plot woven in, brought to length."""

from .cast import Cast
from .dice import Dice
from .events import EVENTS
from .plots import PLOTS
from .setting import Plan, Setting
from .state import Character

# The dear thing is given away here, so no ending may say that it was kept.
_GIVES_DEAR_AWAY = ("trade",)
_PLOT_NAMES = tuple(PLOTS)
# Sentences that only read well right behind the one that the plot puts before them.
_GLUED = (
    "gift",
    "seller",
    "hide",
    "advice",
    "stuck",
    "harmless",
    "alike",
    "who_is",
    "friend_has",
    "notice",
    "find",
    "share",
)
_ASIDES = ("see", "think", "chat", "think", "see")


def plan_story(cast: Cast, dice: Dice) -> tuple[str, list[tuple[str, dict]]]:
    """(plot, its events with their roles), of 14 to 24 sentences."""
    name = dice.pick(_PLOT_NAMES)
    world = Setting.draw(cast, dice)
    plan = PLOTS[name](world)
    plan += world.ending(plan, keep=name not in _GIVES_DEAR_AWAY)
    if dice.chance(50):
        _add_subplot(plan, world)
    wanted = 15 + dice.below(7)
    return name, [(kind, roles) for kind, roles, _ in _to_length(plan, wanted, dice)]


def _add_subplot(plan: Plan, world: Setting) -> None:
    """A small story inside the story: begun behind the opening, closed just before the last sentence."""
    hero, cast, dice = {"A": world.hero}, world.cast, world.dice
    told = {kind for kind, _, _ in plan}
    kinds = ("kindness", "pocket", "vow") if "friend" in told else ("kindness",)
    kind = dice.pick(kinds)
    if kind == "kindness":
        fed = {**hero, "D": cast.character(), "W": cast.food()}
        begin, close = [("hungry", fed, 0), ("share", fed, 0)], ("payback", fed, 0)
    elif kind == "pocket":
        found = {**hero, "B": world.friend, "R": cast.thing(), "S": cast.place()}
        begin, close = [("pocket", found, 0)], ("from_pocket", found, 0)
    else:
        date = {**hero, "B": world.friend, "S": cast.place()}
        begin, close = [("vow", date, 0)], ("vow_kept", date, 0)
    opened = max(index for index, step in enumerate(plan[:-4]) if EVENTS[step[0]].stage == "opening")
    at = opened + 1 + dice.below(3)
    while plan[at][0] in _GLUED:
        at += 1
    plan[at:at] = begin
    plan.insert(len(plan) - 1, close)


def _to_length(plan: Plan, wanted: int, dice: Dice) -> Plan:
    """Leave out dispensable steps or put in asides until the plan has about `wanted` steps."""
    spare = [index for index, step in enumerate(plan) if step[2]]
    surplus = len(plan) - wanted
    if surplus > 0 and spare:
        dropped = set(dice.sample(spare, min(surplus, len(spare))))
        plan = [step for index, step in enumerate(plan) if index not in dropped]
    while len(plan) < wanted:
        at = 3 + dice.below(len(plan) - 5)
        while plan[at][0] in _GLUED:
            at += 1
        known = _known_before(plan, at)
        kind = dice.pick(_ASIDES)
        if kind == "chat" and len(known) < 2:
            kind = "think"
        roles = dict(zip("AB", dice.sample(known, min(2, len(known))), strict=False)) if kind != "see" else {}
        plan.insert(at, (kind, roles, 1))
    return plan


def _known_before(plan: Plan, at: int) -> list[Character]:
    """The hero and, once introduced, the friend."""
    known = [plan[0][1]["A"]]
    known += [roles["B"] for kind, roles, _ in plan[:at] if kind == "friend"]
    return known
