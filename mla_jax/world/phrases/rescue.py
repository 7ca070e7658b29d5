"""Someone is stuck; a thing that was mentioned long before helps."""

PHRASES = {
    "store": (
        "The {R.color} {R} of {A.his} {R.giver} was kept {S.in}, and {A} knew it well.",
        "{S.in}, {A} had once seen {a} {R.color} {R}.",
        "{A} remembered that {a} {R.color} {R} always lay {S.in}.",
        "Last {season}, {A} had left {a} {R.color} {R} {S.in}.",
    ),
    "hear": (
        'Suddenly {A} heard somebody cry, "Help, help!"',
        "{sound}, {sound}, and then {A} heard a small voice.",
        "All at once, {A} heard someone weeping.",
        '"Did you hear that?" {said} {A!}.',
    ),
    "stuck": (
        "It was {C!}, {a} {C.trait} {C.kind}, who was stuck {P.in}.",
        "{P.in}, {a} {C.trait} {C.kind} named {C!} had fallen into {a} {big} hole.",
        "{a} {C.trait} {C.kind} called {C!} was caught between {worn} {junk} {P.in}.",
        "{C!}, {a} {C.trait} {C.kind}, sat {P.in} and could not get down.",
    ),
    "plea": (
        '"I have been here since {day}," {cried} {C!}.',
        '"Please get me out," {said} {C!}.',
        "{C} was {sad} and cold.",
        '"I only wanted to pick some {flowers}," {said} {C!}.',
        "{C} shook like {a} {worn} leaf.",
    ),
    "try": (
        "{A} pulled and pulled, but it was no use.",
        "{A} tried to lift {C.name}, but {A.his} arms were too short.",
        "{A} pushed {manner} until {A.his} {body} hurt, but nothing moved.",
        "First {A} used some {worn} {junk}, but they broke.",
    ),
    "idea": (
        "Then {A} remembered the {R.color} {R} {S.in}.",
        '"I know what we need, and it is {S.in}," {said} {A!}.',
        "{A} thought of the {R} that was {S.in}.",
        '"Wait, {C.name}, I will bring the {R}," {said} {A!}.',
    ),
    "fetch": (
        "{A} {moved} off and took the {R.color} {R} from its place {S.in}.",
        "Soon {A} was {S.in}, and there was the {R}, as {R.color} as ever.",
        "{A} {moved} and {moved}, and came back with the {R.color} {R}.",
    ),
    "pull_out": (
        "With the {R}, {A} got {C.name} out at last.",
        "{A} held out the {R}, and {C.name} {moved} up {manner}.",
        "One, two, three, and {C.name} was free, thanks to the {R.color} {R}.",
        "{C} took hold of the {R.color} {R}, and {A.name} pulled {C.him} out.",
    ),
    "reward": (
        "To say thank you, {C} gave {a} {Q.look} {Q.color} {Q} to {A.name}.",
        '"Take my {Q.color} {Q}, {A.name}," {said} {C!}.',
        "{C} had {a} {Q.color} {Q}, and {C.he} gave it to {A.name}.",
        "{A} got {a} {Q.look} {Q.color} {Q} from {C.name}.",
    ),
    "bring_back": (
        "In the evening, {A} put the {R.color} {R} back {S.in}.",
        "{A} did not forget to take the {R} back, and left it {S.in}.",
        "The {R} went back to its place {S.in}, and {A} went to bed.",
    ),
}
