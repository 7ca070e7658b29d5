"""Two alike things change hands by mistake; only their colors tell them apart."""

PHRASES = {
    "alike": (
        "{B} had {a} {O} too, but it was {Q.color}.",
        "{B} also owned {a} {O}, {a} {Q.color} one.",
        "The {O} of {B!} looked the same, only it was {Q.color}.",
        "{B} had {a} {O} just like the one of {A.name}, but it was {Q.color}.",
    ),
    "put_down": (
        "{A} and {B.name} put their things down {P.in} and played {game}.",
        "They left both of them {P.in}, side by side, and {A} went to look at the {birds}.",
        "{P.in} {A} laid {A.his} {O} beside the one of {B.name}.",
    ),
    "rush": (
        "Suddenly a {weather} wind came up, and {A} grabbed one and {moved} home.",
        "It got dark, so {A} took one of the two and {moved} away.",
        '"It is late!" {cried} {A!}, and took one without looking.',
        "A voice told them to go, and {A} took one in a hurry.",
    ),
    "notice": (
        "At home {A} saw that {A.his} {O} was not {O.color} but {Q.color}.",
        '"This one is {Q.color}, and mine is {O.color}!" {cried} {A!}.',
        "In the light {A} looked at it, and it was {Q.color} instead of {O.color}.",
    ),
    "whose": (
        '"Then it must belong to {B.name}," {said} {A!}.',
        "{A} knew at once that the {Q.color} one belonged to {B.name}.",
        "It could only be the one of {B.name}, thought {A!}.",
    ),
    "tempt": (
        "The {Q.color} one was prettier, and {A} thought about keeping it.",
        "Nobody would know, thought {A!}, and felt {sad}.",
        "{A} put it under the bed, but {A.he} could not sleep.",
        "{A} liked the {Q.color} one, but {virtue} was more important.",
    ),
    "take_back": (
        "The next morning {A} {moved} all the way to {B.name}.",
        "Early on {day}, {A} carried it to the door of {B.name}.",
        "{A} {moved} through the {weather} morning to find {B.name}.",
    ),
    "other_sad": (
        "{B} had not slept either and held the {O.color} one.",
        "{B} was {sad}, because {B.he} missed {B.his} own, the {Q.color} one.",
        '"I have been looking for my {Q.color} one," {said} {B!}.',
    ),
    "swap": (
        "So {A} took the {O.color} one, and {B.name} took the {Q.color} one.",
        "{A} got {A.his} {O.color} {O} back, and {B.name} got the {Q.color} one.",
        '"Mine is {O.color}, yours is {Q.color}," said {A!}, and they swapped.',
    ),
    "mark": (
        "{C!}, {a} {C.trait} {C.kind}, painted a little star on the {O.color} one for {A.name}.",
        "{a} {C.trait} {C.kind} named {C!} wrote a name on each of them, first on the one of {A.name}.",
        "To tell them apart, {C!}, {a} {C.trait} {C.kind}, tied some {flowers} to the one of {A.name}.",
    ),
}
