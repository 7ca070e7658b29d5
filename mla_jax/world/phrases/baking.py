"""Three things are gathered from three neighbors for one meal, and everybody gets a share."""

PHRASES = {
    "plan_pie": (
        "{A} wanted to bake something for {A.his} {O.giver}, but the cupboard was empty.",
        '"I will bake a surprise for my {O.giver}," {said} {A!}.',
        "The {O.giver} of {A!} was sick, so {A} wanted to cook something {tasty}.",
        "It was nearly the birthday of the {O.giver} of {A!}, and {A} decided to bake.",
    ),
    "recipe": (
        "{A} needed {W.many}, {X.many} and {Y.many}.",
        "The old book said to take {W.many}, {X.many} and {Y.many}.",
        '"First I need {W.many}, then {X.many}, and last of all {Y.many}," said {A!}.',
    ),
    "first_giver": (
        "{B} had {W.many}, and {B.he} gave some to {A.name}.",
        "{A} asked {B.name} for {W.many} and got {number} of them.",
        '"Take as many {W.many} as you like," {said} {B!}.',
        "{B} came with a bag full of {W.many}.",
    ),
    "second_giver": (
        "{P.in}, {a} {C.trait} {C.kind} named {C!} grew {X.many}, and {A.name} could have some.",
        "{A} went to see {C.name}, {a} {C.trait} {C.kind} who sold {X.many} {P.in}.",
        "{C!}, {a} {C.trait} {C.kind} {P.in}, had more {X.many} than {C.he} could eat.",
    ),
    "second_price": (
        "{C} did not want money, only a song about {dream}.",
        '"You must first {task} my yard," {said} {C!}.',
        "{A} had to {task} and {task} for {C.name} before {A.he} could go on.",
        "{C} asked {A.name} to {task} the {worn} {junk}.",
    ),
    "third_giver": (
        "The last thing, {Y.many}, came from {D!}, {a} {D.trait} {D.kind} {S.in}.",
        "{S.in} lived {D!}, {a} {D.trait} {D.kind} with {number} sacks of {Y.many}.",
        "{A} found {Y.many} {S.in}, where {D.name}, {a} {D.trait} {D.kind}, had a little stall.",
    ),
    "third_price": (
        '"I will give you some if you invite me," said {D!}.',
        "{D} only wanted to taste the first piece.",
        '"Nobody ever asks me to dinner," {said} {D!}, and {A.name} promised to.',
        "{D} smiled {manner} and filled the bag.",
    ),
    "cook": (
        "At home, {A} mixed everything in {a} {big} dish and stirred {manner}.",
        "{A} cut the {W.many}, mashed the {X.many} and stirred in the {Y.many}.",
        "{sound}, {sound}, went the dough under the hands of {A!}.",
        "{A} put the {X.many} on top of the {W.many} and waited.",
    ),
    "burn": (
        "While it was in the oven, {A} fell asleep and dreamed of {dream}.",
        "Smoke came out of the oven, but {A} was quick.",
        "The first try was as hard as {junk}, so {A} began again.",
        "{A} dropped a spoonful on {A.his} {body}, but most of it stayed in the dish.",
    ),
    "thanks_all": (
        "{A} thanked {B.name} for the {W.many} and {C.name} for the {X.many}.",
        "{B.name} had given the {W.many} and {D.name} the {Y.many}, so {A!} gave both a big piece.",
        'The {O.giver} of {A!} asked, "Who gave you the {X.many}?" and {A} said that it was {C.name}.',
        '"The {Y.many} are from {D.name}," {said} {A!}.',
        "When it came to the {X.many}, everybody had to thank {C.name}, said {A!}.",
        "The best of all were the {W.many}, which had come from {B.name}, and {A.name} said so.",
        "Without the {Y.many} of {D.name}, {A.name} could not have done it.",
    ),
    "eat": (
        "Everybody ate, and it was {tasty} and {tasty}.",
        "The {O.giver} of {A!} ate {number} pieces and felt better.",
        "{B.name}, {C.name} and {D.name} sat at one table with {A!}.",
        "Not a crumb was left, and the {O.giver} of {A!} laughed.",
    ),
}
