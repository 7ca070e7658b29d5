"""What every story has, and the threads that every plot can open and close."""

from dataclasses import dataclass

from .cast import Cast
from .dice import Dice
from .state import Character, Food, Place, Thing

# (event kind, roles, weight): weight 0 is needed, 1 may be left out.
Step = tuple[str, dict, int]
Plan = list[Step]


@dataclass(slots=True)
class Setting:
    """What every story has: a hero with a home, a dear thing and a favorite food, a friend with a thing."""

    cast: Cast
    dice: Dice
    hero: Character
    friend: Character
    dear: Thing
    other: Thing
    home: Place
    food: Food

    @classmethod
    def draw(cls, cast: Cast, dice: Dice) -> "Setting":
        hero, friend = cast.character(), cast.character()
        dear, other = cast.thing(main=True), cast.thing()
        return cls(cast, dice, hero, friend, dear, other, cast.place(of=hero), cast.food())

    def opening(self, needs: tuple[str, ...]) -> Plan:
        """The introduction: the blocks in `needs` and some of the others, in random order."""
        hero, friend = {"A": self.hero}, {"A": self.hero, "B": self.friend}
        dear = {"A": self.hero, "O": self.dear}
        blocks: dict[str, Plan] = {
            "home": [("home", {**hero, "P": self.home}, 0)],
            "dear": [("has", dear, 0), ("gift", dear, 0)],
            "friend": [("friend", friend, 0)],
            "food": [("likes", {**hero, "W": self.food}, 0)],
            "hobby": [("hobby", hero, 1)],
        }
        if "other" in needs or self.dice.chance(45):
            blocks["friend"].append(("friend_has", {"A": self.friend, "O": self.other}, 0))
        names = [name for name in blocks if name in needs or self.dice.chance(40)]
        plan: Plan = [("intro", hero, 0)]
        for name in self.dice.sample(names, len(names)):
            plan += blocks[name]
        return plan

    def ending(self, plan: Plan, keep: bool = True) -> Plan:
        """Close the threads that the opening left open; `keep` is false if the dear thing is given away."""
        hero = {"A": self.hero}
        told = {kind for kind, _, _ in plan}
        has_other = any(step[1].get("O") is self.other or step[1].get("Q") is self.other for step in plan)
        threads: Plan = []
        if "home" in told:
            threads.append(("go_home", {**hero, "P": self.home}, 0))
        if "likes" in told:
            threads.append(("eat_favorite", {**hero, "W": self.food}, 0))
        if "has" in told and keep:
            kind = self.dice.pick(("keep", "keep", "remember"))
            threads.append((kind, {**hero, "O": self.dear}, 0))
        if has_other:
            both = {**hero, "B": self.friend, "O": self.dear, "Q": self.other}
            kind = self.dice.pick(("friend_end", "owners")) if "has" in told and keep else "friend_end"
            threads.append((kind, both, 0))
        ending = self.dice.sample(threads, len(threads))[:3]
        last = self.dice.pick(("sleep", "moral", "moral")) if "friend" in told else "sleep"
        ending.append((last, {**hero, "B": self.friend}, 0))
        return ending
