"""Plans: which events happen, in which order, to whom."""

from .cast import Cast
from .dice import Dice

Plan = list[tuple[str, dict]]


def lost(cast: Cast, dice: Dice) -> Plan:
    """Something dear is lost at one place, looked for at others, found with a stranger's help."""
    hero, friend, helper = cast.character(), cast.character(), cast.character()
    toy, other = cast.thing(main=True), cast.thing()
    home, playground = cast.place(), cast.place()
    hiding, wrong, wrong2 = cast.place(of=hero), cast.place(), cast.place()
    plan: Plan = [("intro", {"A": hero})]
    setup = [
        [("home", {"A": hero, "P": home})],
        [("has", {"A": hero, "O": toy}), ("gift", {"A": hero, "O": toy})],
        [("friend", {"A": hero, "B": friend}), ("friend_has", {"A": friend, "O": other})],
    ]
    for block in dice.sample(setup, 3):
        plan += block
    plan += [
        ("weather", {}),
        ("go_together", {"A": hero, "B": friend, "P": playground}),
        ("play", {"A": hero, "B": friend}),
    ]
    if dice.chance(50):
        plan.append(("play", {"A": friend, "B": hero}))
    plan += [("lose", {"A": hero, "O": toy})]
    if dice.chance(60):
        plan.append(("cry_loss", {"A": hero, "O": toy}))
    plan += [("feel_sad", {"A": hero}), ("comfort", {"A": friend, "B": hero})]
    plan += [("search", {"A": hero, "P": wrong})]
    if dice.chance(60):
        plan.append(("search", {"A": friend, "P": wrong2}))
    plan += [
        ("meet", {"A": hero, "C": helper}),
        ("ask", {"A": hero, "C": helper, "O": toy}),
        ("clue", {"C": helper, "O": toy, "P": hiding}),
        ("go_find", {"A": hero, "C": helper, "O": toy, "P": hiding}),
        ("find", {"A": hero, "O": toy, "P": hiding}),
        ("feel_happy", {"A": hero, "O": toy}),
        ("thank", {"A": hero, "C": helper}),
        ("go_home", {"A": hero, "P": home}),
    ]
    endings = [("keep", {"A": hero, "O": toy}), ("remember", {"A": hero, "O": toy})]
    plan += dice.sample(endings, 1 + dice.below(2))
    plan.append(("moral", {"A": hero, "B": friend}))
    return plan


PLOTS = {"lost": lost}
