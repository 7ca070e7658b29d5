"""Plots: which events happen, in which order, to whom. Threads that all plots share are in `setting`."""

from collections.abc import Callable

from .setting import Plan, Setting


def lost(world: Setting) -> Plan:
    """Something dear is lost at one place, looked for at others, found with a stranger's help."""
    hero, friend, toy, helper = world.hero, world.friend, world.dear, world.cast.character()
    place = world.cast.place
    playground, hiding = {"P": place()}, {"P": place()}
    pair, mine = {"A": hero, "B": friend}, {"A": hero, "O": toy}
    return [
        *world.opening(("dear", "friend")),
        ("weather", {}, 1),
        ("go_together", {**pair, **playground}, 0),
        ("linger", {"A": hero, **playground}, 1),
        ("play", pair, 1),
        ("play", {"A": friend, "B": hero}, 1),
        ("lose", mine, 0),
        ("cry_loss", mine, 1),
        ("feel_sad", {"A": hero}, 1),
        ("comfort", {"A": friend, "B": hero}, 1),
        ("search", {"A": hero, "P": place()}, 0),
        ("search", {"A": friend, "P": place()}, 1),
        ("meet", {"A": hero, "C": helper}, 0),
        ("greet", {"C": helper}, 1),
        ("ask_lost", {"C": helper, **mine}, 0),
        ("clue", {"C": helper, "O": toy, **hiding}, 0),
        ("go_find", {**pair, "C": helper, "O": toy, **hiding}, 0),
        ("find", {**mine, **hiding}, 0),
        ("feel_happy", {"A": hero}, 1),
        ("thank", {"A": hero, "C": helper}, 1),
    ]


def trade(world: Setting) -> Plan:
    """A wish at a place; its owner wants the hero's dear thing for it; both change hands."""
    hero, friend, dear, seller = world.hero, world.friend, world.dear, world.cast.character()
    wish, place = world.cast.thing(), {"P": world.cast.place()}
    pair, deal = {"A": hero, "B": friend}, {"A": hero, "C": seller, "O": dear, "Q": wish}
    plan = [
        *world.opening(("dear", "friend")),
        ("weather", {}, 1),
        ("wish", {"A": hero, "Q": wish, **place}, 0),
        ("seller", deal, 0),
        ("ask_price", deal, 0),
        ("price", {"C": seller, "O": dear}, 0),
        ("doubt", {**pair, "O": dear}, 0),
        ("advice", {"A": friend, "B": hero}, 1),
        ("think", {"A": hero}, 1),
        ("trade", deal, 0),
        ("feel_happy", {"A": hero}, 1),
        ("owns_new", deal, 0),
        ("show_friend", {**deal, "B": friend}, 0),
    ]
    after = [("owns_old", deal, 0), ("visit_old", {"A": hero, "C": seller, "Q": wish, **place}, 0)]
    return plan + world.dice.sample(after, 1 + world.dice.below(2))


def broken(world: Setting) -> Plan:
    """The friend's thing is borrowed, broken, hidden, confessed, mended and given back."""
    hero, friend, lent, mender = world.hero, world.friend, world.other, world.cast.character()
    scene, hideout = {"P": world.cast.place()}, {"P": world.cast.place()}
    pair, loan = {"A": hero, "B": friend}, {"A": hero, "B": friend, "Q": lent}
    needs = ("friend", "other", "dear") if world.dice.chance(50) else ("friend", "other")
    opening = world.opening(needs)
    plan = [
        *opening,
        ("weather", {}, 1),
        ("go_together", {**pair, **scene}, 0),
        ("play", pair, 1),
        ("borrow", loan, 0),
        ("break", {"A": hero, "Q": lent, **scene}, 0),
        ("feel_sad", {"A": hero}, 1),
        ("hide", {"A": hero, "Q": lent, **hideout}, 0),
        ("guilt", {"A": hero}, 1),
        ("ask_back", loan, 0),
        ("think", {"A": hero}, 1),
        ("confess", {**loan, **hideout}, 0),
        ("forgive", loan, 0),
        ("mend", {"A": hero, "C": mender}, 0),
        ("greet", {"C": mender}, 1),
        ("mended", {"C": mender, "Q": lent}, 0),
        ("give_back", loan, 0),
        ("feel_happy", {"A": hero}, 1),
    ]
    if any(kind == "has" for kind, _, _ in opening):
        plan.append(("offer", {**pair, "O": world.dear}, 1))
    plan.append(("thank", {"A": hero, "C": mender}, 1))
    return plan


def rescue(world: Setting) -> Plan:
    """Someone is stuck; a thing whose place was told long before gets them out."""
    hero, stuck, tool = world.hero, world.cast.character(), world.cast.thing()
    prize = world.cast.thing()
    spot, store = {"P": world.cast.place()}, {"S": world.cast.place()}
    kept = {"A": hero, "R": tool, **store}
    opening = world.opening(("home",))
    return [
        *opening,
        ("store", kept, 0),
        ("weather", {}, 1),
        ("go_alone", {"A": hero, "P": world.cast.place()}, 0),
        ("see", {}, 1),
        ("think", {"A": hero}, 1),
        ("hear", {"A": hero}, 0),
        ("stuck", {"C": stuck, **spot}, 0),
        ("plea", {"C": stuck}, 1),
        ("try", {"A": hero, "C": stuck}, 0),
        ("idea", {"C": stuck, **kept}, 0),
        ("fetch", kept, 0),
        ("pull_out", {"A": hero, "C": stuck, "R": tool}, 0),
        ("feel_happy", {"A": hero}, 1),
        ("reward", {"A": hero, "C": stuck, "Q": prize}, 1),
        ("bring_back", kept, 0),
    ]


def party(world: Setting) -> Plan:
    """The friend's wish, food and place were told early and have to be remembered."""
    hero, friend, helper = world.hero, world.friend, world.cast.character()
    gift, food, place = world.cast.thing(), {"W": world.cast.food()}, {"P": world.cast.place()}
    pair, present = {"A": hero, "B": friend}, {"A": hero, "B": friend, "Q": gift}
    clues = [
        ("invite", {"B": friend, **place}, 0),
        ("wants", {"B": friend, "Q": gift}, 0),
        ("likes", {"A": friend, **food}, 0),
    ]
    return [
        *world.opening(("friend",)),
        ("birthday", pair, 0),
        *world.dice.sample(clues, 3),
        ("think", {"A": hero}, 1),
        ("shop_wrong", {"A": hero, "S": world.cast.place()}, 1),
        ("helper_party", {"A": hero, "C": helper}, 0),
        ("greet", {"C": helper}, 1),
        ("shop_right", {**present, "C": helper}, 0),
        ("bake_for", {**pair, **food}, 0),
        ("mishap", {"A": hero}, 1),
        ("arrive", {**pair, **place}, 0),
        ("give", present, 0),
        ("glad_gift", present, 1),
        ("feast", {"B": friend, **food}, 0),
    ]


def fear(world: Setting) -> Plan:
    """A walk through the dark to a relative, with the friend's thing in hand."""
    hero, friend, charm, stranger = world.hero, world.friend, world.other, world.cast.character()
    goal = {"P": world.cast.place()}
    task, loan = {"A": hero, "O": world.dear, **goal}, {"A": hero, "B": friend, "Q": charm}
    return [
        *world.opening(("dear", "friend", "other")),
        ("afraid", {"A": hero}, 0),
        ("task_far", task, 0),
        ("lend", loan, 0),
        ("dark", {}, 0),
        ("shiver", {"A": hero}, 1),
        ("hold_on", {"A": hero, "Q": charm}, 0),
        ("scare", {"A": hero}, 0),
        ("harmless", {"C": stranger}, 0),
        ("greet", {"C": stranger}, 1),
        ("walk_with", {**loan, "C": stranger}, 0),
        ("see", {}, 1),
        ("arrive_far", task, 0),
        ("feel_happy", {"A": hero}, 1),
        ("brave_now", {"A": hero, "O": world.dear}, 0),
        ("return_lent", loan, 0),
    ]


def baking(world: Setting) -> Plan:
    """Three foods from three givers; at the end each is thanked for the right one."""
    hero, friend = world.hero, world.friend
    second, third = world.cast.character(), world.cast.character()
    foods = {"W": world.cast.food(), "X": world.cast.food(), "Y": world.cast.food()}
    guests = {"A": hero, "B": friend, "C": second, "D": third, "O": world.dear}
    return [
        *world.opening(("dear", "friend")),
        ("plan_pie", guests, 0),
        ("recipe", {"A": hero, **foods}, 0),
        ("first_giver", {**guests, **foods}, 0),
        ("second_giver", {**guests, **foods, "P": world.cast.place()}, 0),
        ("second_price", guests, 1),
        ("third_giver", {**guests, **foods, "S": world.cast.place()}, 0),
        ("third_price", guests, 1),
        ("burn", {"A": hero}, 1),
        ("cook", {**guests, **foods}, 0),
        ("feel_happy", {"A": hero}, 1),
        ("thanks_all", {**guests, **foods}, 0),
        ("eat", guests, 0),
        ("thanks_all", {**guests, **foods}, 0),
    ]


def errand(world: Setting) -> Plan:
    """A thing promised to someone is left behind on the way and fetched again."""
    hero, friend, old = world.hero, world.friend, world.cast.character()
    parcel = world.cast.thing()
    house, stop = {"P": world.cast.place()}, {"S": world.cast.place()}
    job = {"A": hero, "B": friend, "C": old, "Q": parcel}
    return [
        *world.opening(("friend",)),
        ("weather", {}, 1),
        ("errand", {**job, **house}, 0),
        ("who_is", {"C": old}, 0),
        ("promise", job, 1),
        ("see", {}, 1),
        ("distract", {**job, **stop}, 0),
        ("play", {"A": hero, "B": friend}, 1),
        ("forget", job, 1),
        ("think", {"A": hero}, 1),
        ("reach", {**job, **house}, 0),
        ("ask_errand", job, 1),
        ("recall", {**job, **stop}, 0),
        ("run_back", {**job, **stop}, 0),
        ("deliver", job, 0),
        ("feel_happy", {"A": hero}, 1),
        ("thank_errand", job, 0),
        ("report", job, 1),
    ]


def mixup(world: Setting) -> Plan:
    """Two alike things are mixed up; their colors tell whose is whose."""
    hero, friend, mine = world.hero, world.friend, world.dear
    twin = world.cast.thing(noun=mine.noun)
    pair = {"A": hero, "B": friend, "O": mine, "Q": twin}
    spot = {"P": world.cast.place()}
    opening = world.opening(("dear", "friend"))
    return [
        *opening,
        ("alike", pair, 0),
        ("weather", {}, 1),
        ("go_together", {**pair, **spot}, 0),
        ("put_down", {**pair, **spot}, 0),
        ("play", pair, 1),
        ("chat", pair, 1),
        ("rush", {"A": hero}, 0),
        ("notice", pair, 0),
        ("whose", pair, 0),
        ("tempt", pair, 1),
        ("take_back", pair, 0),
        ("other_sad", pair, 1),
        ("swap", pair, 0),
        ("feel_happy", {"A": hero}, 1),
        ("mark", {"A": hero, "C": world.cast.character(), "O": mine}, 1),
    ]


PLOTS: dict[str, Callable[[Setting], Plan]] = {
    "lost": lost,
    "trade": trade,
    "broken": broken,
    "rescue": rescue,
    "party": party,
    "fear": fear,
    "baking": baking,
    "errand": errand,
    "mixup": mixup,
}
