"""A wish that costs something: work or a dear thing is given for it."""

PHRASES = {
    "wish": (
        "{P.in} {A} saw {a} {Q.look} {Q.color} {Q} and could not look away.",
        "One {day}, {A} saw {a} {Q.look} {Q.color} {Q} {P.in}.",
        "There was {a} {Q.look} {Q.color} {Q} {P.in}, and {A} wished for it with all {A.his} heart.",
        "{A} had never seen such {a} {Q.look} {Q.color} {Q} as the one {P.in}.",
    ),
    "seller": (
        "It belonged to {C!}, {a} {C.trait} {C.kind}.",
        "The owner was {C!}, {a} {C.trait} {C.kind}, and {C.he} wanted to keep it.",
        "{a} {C.trait} {C.kind} named {C!} was selling it.",
        "{C!}, {a} {C.trait} {C.kind}, sat beside it and said that it was {C.his} own.",
    ),
    "ask_price": (
        '"Please, may I have the {Q}?" asked {A!}.',
        "{A} asked {C.name} what the {Q} would cost.",
        '"How much is the {Q}, {C.name}?" asked {A!} {manner}.',
        "{A} had only {number} pennies, but {A.he} asked {C.name} for the {Q}.",
    ),
    "price": (
        '"You can have it for {a} {O.color} {O}," said {C!}.',
        "{C} wanted {a} {O.color} {O} for it.",
        '"If you bring me {a} {O.color} {O}, it is yours," {said} {C!}.',
        '{C} said, "I have always wished for {a} {O.color} {O}."',
    ),
    "doubt": (
        "{A} thought of {A.his} {O.giver} and did not know what to do.",
        "{A} looked at {A.his} {O} for a long time.",
        '"But the {O} is from my {O.giver}," {said} {A!}.',
        "{A} asked {B.name} whether {A.he} should give away the {O}.",
        "That night {A} could not sleep and held {A.his} {O.color} {O}.",
    ),
    "advice": (
        '"Only you can know that," said {A!} {manner}.',
        '"A wish is a wish," {said} {A!}, and {B.name} nodded.',
        "{A} told {B.name} to listen to {B.his} heart.",
        '"Ask yourself again on {day}, {B.name}," said {A!}.',
    ),
    "trade": (
        "So {A} gave the {O} to {C.name} and got the {Q}.",
        "{A} handed over {A.his} {O.color} {O}, and {C.name} gave {A.him} the {Q.color} {Q}.",
        "In the end {A} and {C.name} made a trade, the {O} for the {Q}.",
        '"It is a deal," said {C.name}, and {A} took the {Q} and left the {O}.',
    ),
    "owns_new": (
        "Now the {Q.color} {Q} belonged to {A!}.",
        "From then on, the {Q} belonged to {A!}.",
        "{A} {moved} home with {A.his} {Q.color} {Q}.",
        "{A} showed everyone {A.his} {Q}, so {Q.look} and so {Q.color}.",
    ),
    "owns_old": (
        "And the {O.color} {O} belonged to {C!}.",
        "The {O} was in the hands of {C!}, who took good care of it.",
        "{C} was {happy} with {C.his} {O.color} {O}.",
        "Far away, {C} played with {C.his} {O}.",
    ),
    "show_friend": (
        '"What {a} {Q.look} {Q}!" {cried} {B!}.',
        "{B} asked where the {Q} had come from, and {A.name} told {B.him} about {C.name}.",
        "{B} wanted to hold the {Q} too, and {A.name} let {B.him}.",
        "{A} let {B.name} try the {Q}.",
    ),
    "visit_old": (
        "Sometimes {A} went to see {C.name} {P.in}.",
        "Every {day}, {C.name} waited for {A!} {P.in}.",
        "{A} and {C.name} often met {P.in} after that.",
    ),
}
