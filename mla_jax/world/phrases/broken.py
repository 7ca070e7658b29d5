"""Something borrowed breaks; it is hidden, confessed and mended."""

PHRASES = {
    "borrow": (
        "{A} asked {B.name} to lend {A.him} the {Q}.",
        '"May I borrow your {Q}, {B.name}?" asked {A!}.',
        "{B.name} let {A!} play with the {Q.color} {Q} for a day.",
        "{A} was allowed to hold the {Q.color} {Q} of {B.name}.",
    ),
    "break": (
        "But {P.in}, {A} tripped over some {worn} {junk}, and the {Q} broke.",
        "{A} jumped like {a} {likeness} {P.in}, and {sound}, the {Q} broke in two.",
        "Then, {P.in}, the {Q} slipped from the hands of {A!} and broke.",
        "{sound} went the {Q} when {A} dropped it {P.in}.",
    ),
    "hide": (
        "{A} was afraid and hid it {P.in}.",
        "Nobody was looking, so {A} put the broken {Q} {P.in}.",
        "{A} {moved} away and left the {Q} {P.in}, under some {junk}.",
        "Quickly, {A} covered it with {worn} {junk} {P.in}.",
    ),
    "guilt": (
        "All night {A} lay awake and felt {sad}.",
        "{A} could not eat any {meal}, because {A.he} felt so {sad}.",
        "The secret made {A!} {sad}.",
        "{A} dreamed of {scary} and woke up {sad}.",
        '"I should have told the truth," thought {A!}.',
    ),
    "ask_back": (
        '"Where is my {Q.color} {Q}?" asked {B!} the next morning.',
        "On {day}, {B} came and wanted {B.his} {Q} back.",
        '"I need my {Q} today, {A.name}," {said} {B!}.',
        "The next day {B} looked for {B.his} {Q.color} {Q} everywhere.",
    ),
    "confess": (
        '"I broke it and hid it {P.in}," {said} {A!} {manner}.',
        "{A} told {B.name} that the broken {Q} was {P.in}.",
        "Then {A} was brave and said that the {Q} was {P.in}.",
        '"It is {P.in}, and it is all my fault," {cried} {A!}.',
    ),
    "forgive": (
        "{B} was quiet for a moment, but then {B.he} took the hand of {A.name}.",
        '"Thank you for telling the truth, {A.name}," {said} {B!}.',
        "{B} was cross at first, but {B.he} forgave {A.name}.",
        '"It was only {a} {Q}, and you are my friend," said {B!}.',
    ),
    "mend": (
        "Together they went to {C!}, {a} {C.trait} {C.kind} who could mend anything.",
        "{C!}, {a} {C.trait} {C.kind}, had glue and string and {number} nails.",
        "{a} {C.trait} {C.kind} named {C!} knew how to mend such things.",
        "They asked {C!} for help, {a} {C.trait} {C.kind}.",
    ),
    "mended": (
        "{C} worked {manner}, and soon the {Q} was {Q.color} and whole again.",
        "With {junk} and glue, {C} made the {Q.color} {Q} as good as new.",
        "{sound}, {sound}, and {C} had put the {Q} together.",
        '"Here you are, {a} {Q.color} {Q} like new," said {C!}.',
    ),
    "give_back": (
        "{A} gave the {Q} back to {B.name}.",
        "Now the {Q} was with {B.name} again, where it belonged.",
        "{B} took {B.his} {Q.color} {Q} and hugged {A.name}.",
        "{B} held {B.his} {Q} up to the light and smiled.",
    ),
    "offer": (
        '"You may play with my {O.color} {O} too," {said} {A!}.',
        "To say sorry, {A} let {B.name} have {A.his} {O.color} {O} for a week.",
        "{A} lent {A.his} {O} to {B.name} until {day}.",
    ),
}
