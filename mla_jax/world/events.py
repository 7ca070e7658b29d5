"""What can happen, what it needs and what it does to the state of a story.

One line an event: kind | stage | roles | rules. The rules, in the order in which they are applied:

* `new A`: from here on the story knows A; every other role of a sentence must be known already;
* `owner O=A`: the owner of O is A; said for the first time it is taken down, later it must agree;
* `owner O:=C`: from now on the owner of O is C;
* `open lost`, `need lost`, `close lost`, `after lost`: the goal "lost" is set, must be open, is reached, must
  have been reached; `settled`: at least one goal was set and none is open;
* `sad A`, `glad A`: gives A a cause for the feeling; `is_sad A`, `is_glad A`: the feeling needs its cause.

A rule whose roles the sentence does not show is passed over.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule: `verb` is new, hold, set, open, need, close, after, settled, feel or felt.

    hold and set read `relation(role) = filler`; feel and felt keep the mood there, goals their name.
    """

    verb: str
    relation: str = ""
    role: str = ""
    filler: str = ""


@dataclass(frozen=True, slots=True)
class Event:
    """One kind of event; `stated` are the relations put into words, (relation, role, filler)."""

    kind: str
    stage: str
    roles: tuple[str, ...]
    rules: tuple[Rule, ...]
    stated: tuple[tuple[str, str, str], ...]


_TABLE = """
intro        | opening    | A | new A
home         | opening    | A P | home A=P
has          | opening    | A O | new O; owner O=A
gift         | opening    | A O | owner O=A
friend       | opening    | A B | new B
friend_has   | opening    | A O | new O; owner O=A
likes        | opening    | A W | likes A=W
hobby        | opening    | A |
weather      | journey    |   |
go_together  | journey    | A B P | at A:=P; at B:=P
go_alone     | journey    | A P | at A:=P
play         | journey    | A B |
see          | journey    |   |
think        | journey    | A |
chat         | journey    | A B |
linger       | journey    | A P | at A=P
meet         | middle     | A C | new C
greet        | middle     | C |
lose         | trouble    | A O | owner O=A; open lost; sad A
cry_loss     | trouble    | A O | need lost; owner O=A
feel_sad     | trouble    | A | is_sad A
comfort      | trouble    | A B | is_sad B
search       | middle     | A P | need lost
ask_lost     | middle     | A C O | need lost; owner O=A
clue         | middle     | C O P | need lost; place O=P
go_find      | middle     | A B C O P | need lost; place O=P; at A:=P
find         | resolution | A O P | need lost; place O=P; owner O=A; close lost; glad A
wish         | trouble    | A Q P | new Q; place Q=P; open wish; at A:=P
seller       | trouble    | A C Q | new C; owner Q=C
ask_price    | middle     | A C Q | need wish; owner Q=C
price        | middle     | C O | need wish
doubt        | middle     | A B O | need wish; owner O=A
advice       | middle     | A B | need wish
trade        | resolution | A C O Q | need wish; owner O=A; owner O:=C; owner Q:=A; close wish; glad A
owns_new     | resolution | A Q | after wish; owner Q=A
owns_old     | ending     | C O | after wish; owner O=C
show_friend  | ending     | A B C Q | after wish; owner Q=A
visit_old    | ending     | A C Q P | after wish; place Q=P
borrow       | journey    | A B Q | owner Q=B
break        | trouble    | A Q P | at A=P; open broken; sad A
hide         | trouble    | A Q P | need broken; place Q:=P
guilt        | trouble    | A | need broken; is_sad A
ask_back     | middle     | A B Q | need broken; owner Q=B
confess      | middle     | A B Q P | need broken; place Q=P
forgive      | middle     | A B Q | need broken
mend         | middle     | A C | need broken; new C
mended       | resolution | C Q | need broken; close broken
give_back    | resolution | A B Q | after broken; owner Q=B; glad A
offer        | resolution | A B O | owner O=A
store        | opening    | A R S | new R; place R=S
hear         | trouble    | A |
stuck        | trouble    | C P | new C; at C=P; open stuck; sad C
plea         | trouble    | C | need stuck; is_sad C
try          | middle     | A C | need stuck
idea         | middle     | A C R S | need stuck; place R=S
fetch        | middle     | A R S | need stuck; place R=S
pull_out     | resolution | A C R | need stuck; close stuck; glad A; glad C
reward       | resolution | A C Q | after stuck; new Q; owner Q=A
bring_back   | ending     | A R S | after stuck; place R=S
birthday     | trouble    | A B | open gift
invite       | trouble    | B P | need gift; party B=P
wants        | trouble    | B Q | need gift; new Q
shop_wrong   | middle     | A S | need gift
helper_party | middle     | A C | need gift; new C
shop_right   | middle     | A B C Q | need gift
bake_for     | middle     | A B W | need gift; likes B=W
mishap       | middle     | A |
arrive       | middle     | A B P | need gift; party B=P
give         | resolution | A B Q | need gift; owner Q:=B; close gift; glad A; glad B
glad_gift    | resolution | A B Q | after gift; is_glad B
feast        | ending     | B W | after gift; likes B=W
afraid       | opening    | A |
task_far     | trouble    | A O P | open far; far A=P
dark         | middle     |   | need far
shiver       | middle     | A | need far
lend         | trouble    | A B Q | need far; owner Q=B
hold_on      | middle     | A Q | need far
scare        | middle     | A | need far
harmless     | middle     | C | need far; new C
walk_with    | middle     | A B C Q | need far
arrive_far   | resolution | A O P | need far; far A=P; close far; glad A
brave_now    | resolution | A O | after far
return_lent  | ending     | A B Q | after far; owner Q=B
plan_pie     | trouble    | A O | open meal
recipe       | trouble    | A W X Y | need meal
first_giver  | middle     | A B W | need meal; from W=B
second_giver | middle     | A C P X | need meal; new C; from X=C; at C=P
second_price | middle     | A C | need meal
third_giver  | middle     | A D S Y | need meal; new D; from Y=D; at D=S
third_price  | middle     | A D | need meal
cook         | resolution | A W X Y | need meal; close meal; glad A
burn         | middle     | A |
thanks_all   | ending     | A B C D O W X Y | after meal; from W=B; from X=C; from Y=D
eat          | ending     | A B C D O | after meal
errand       | trouble    | A C P Q | new C; new Q; open errand; live C=P
who_is       | trouble    | C |
promise      | trouble    | A Q | need errand
distract     | middle     | A B Q S | need errand; place Q:=S
forget       | middle     | A Q | need errand
reach        | middle     | A C P | need errand; live C=P
ask_errand   | middle     | A C Q | need errand
recall       | middle     | A Q S | need errand; place Q=S
run_back     | middle     | A Q S | need errand; place Q=S
deliver      | resolution | A C Q | need errand; owner Q:=C; close errand; glad A
thank_errand | resolution | A C Q | after errand
report       | ending     | A C Q | after errand
alike        | opening    | A B O Q | new Q; owner O=A; owner Q=B
put_down     | journey    | A B O P | place O:=P; owner O=A
rush         | trouble    | A | open mixed
notice       | trouble    | A O Q | need mixed; owner O=A
whose        | trouble    | A B Q | need mixed; owner Q=B
tempt        | middle     | A Q | need mixed
take_back    | middle     | A B | need mixed
other_sad    | middle     | B O Q | need mixed; owner Q=B
swap         | resolution | A B O Q | need mixed; owner O=A; owner Q=B; close mixed; glad A
mark         | ending     | A C O | after mixed; new C; owner O=A
pocket       | journey    | A R S | new R; place R=S; owner R=A
from_pocket  | ending     | A B R S | settled; place R=S; owner R:=B
hungry       | journey    | A D | new D
share        | journey    | A D W | fed D=W
payback      | ending     | A D W | settled; fed D=W
vow          | journey    | A B S | meet A=S
vow_kept     | ending     | A B S | settled; meet A=S
feel_happy   | resolution | A | is_glad A
thank        | resolution | A C | settled
go_home      | ending     | A P | home A=P; at A:=P
keep         | ending     | A O | settled; owner O=A
remember     | ending     | A O | settled; owner O=A
friend_end   | ending     | A B Q | settled; owner Q=B
owners       | ending     | A B O Q | settled; owner O=A; owner Q=B
eat_favorite | ending     | A W | settled; likes A=W
sleep        | ending     | A | settled
moral        | ending     | A B | settled
"""

_PLAIN = ("new", "open", "need", "close", "after", "settled")
_MOODS = {
    "sad": ("feel", "sad"),
    "glad": ("feel", "glad"),
    "is_sad": ("felt", "sad"),
    "is_glad": ("felt", "glad"),
}


def _rule(text: str) -> Rule:
    verb, _, rest = text.partition(" ")
    if verb == "new":
        return Rule("new", role=rest)
    if verb in _PLAIN:
        return Rule(verb, relation=rest)
    if verb in _MOODS:
        kind, mood = _MOODS[verb]
        return Rule(kind, relation=mood, role=rest)
    role, assign, filler = rest.partition(":=" if ":=" in rest else "=")
    return Rule("set" if assign == ":=" else "hold", relation=verb, role=role, filler=filler)


def _event(line: str) -> Event:
    kind, stage, roles, rules = (cell.strip() for cell in line.split("|"))
    parsed = tuple(_rule(rule.strip()) for rule in rules.split(";") if rule.strip())
    stated = tuple((rule.relation, rule.role, rule.filler) for rule in parsed if rule.filler)
    return Event(kind, stage, tuple(roles.split()), parsed, stated)


EVENTS: dict[str, Event] = {event.kind: event for event in (_event(line) for line in _TABLE.strip().splitlines())}
# Goals that some event can open; a story is resolved when every goal that it opened was closed.
GOALS = tuple(sorted({rule.relation for event in EVENTS.values() for rule in event.rules if rule.verb == "open"}))
