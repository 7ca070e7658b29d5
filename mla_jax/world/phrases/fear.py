"""A fear is overcome with the help of something lent."""

PHRASES = {
    "afraid": (
        "But {A} was afraid of {scary}.",
        "There was one thing {A} feared, and it was {scary}.",
        "At night {A} thought of {scary} and could not sleep.",
        "Nobody knew that {A} was scared of {scary}.",
    ),
    "task_far": (
        "One {day}, {A} had to go to see {A.his} {O.giver}, who was {P.in}.",
        "Then the {O.giver} of {A!} got sick and had to stay {P.in}.",
        "A letter came, and it said that the {O.giver} of {A!} was waiting {P.in}.",
        '"My {O.giver} needs me, and the way ends {P.in}," said {A!}.',
    ),
    "dark": (
        "It was getting dark, and the {trees} looked like {scary}.",
        "The way was {big} and {big}, and the {sky} was gone.",
        "{sound}, {sound}, something moved behind the {trees}.",
        "The night was near, and {bugs} hummed in the dark.",
    ),
    "shiver": (
        "{A} could not take one more step.",
        "The {body} of {A!} began to shake.",
        "{A} wanted to turn back and hide under the covers.",
        '"I can not do this," {said} {A!}.',
        "{A} was as stiff as {a} {likeness}.",
    ),
    "lend": (
        '"Take my {Q.color} {Q} with you," {said} {B!}.',
        "{B} lent {B.his} {Q.color} {Q} to {A.name}.",
        "{B} gave {A.name} {B.his} {Q}, because it had always brought luck.",
        '"My {Q.color} {Q} keeps {scary} away," said {B!}, and {A.name} took it.',
    ),
    "hold_on": (
        "{A} held the {Q} tight and {moved} on.",
        "Step by step, {A} {moved} through the dark with the {Q.color} {Q}.",
        "Whenever {A} was afraid, {A.he} touched the {Q}.",
        "The {Q.color} {Q} felt warm in the hands of {A!}.",
    ),
    "scare": (
        "Something with {number} eyes looked out of the {trees}.",
        "{sound} went something near the {body} of {A!}.",
        "{a} {big} shadow fell over the path, and {A} stood still.",
        "Something with {worn} fur was sitting among the {flowers}.",
    ),
    "harmless": (
        "But it was only {C!}, {a} {C.trait} {C.kind}, who was looking for {bugs}.",
        "It was {a} {C.trait} {C.kind} named {C!}, and {C.he} was lost too.",
        "Then {C!} came out, {a} {C.trait} {C.kind} with a sack of {junk}.",
    ),
    "walk_with": (
        "{A} and {C.name} walked together, and it was only half as dark.",
        '"Let us go on together, {C.name}," said {A!}.',
        "{C} was afraid of {scary} too, so {A.name} took {C.him} by the hand.",
        "{A} told {C.name} about {B.name} and the {Q.color} {Q}.",
    ),
    "arrive_far": (
        "At last {A} was {P.in}, and {A.his} {O.giver} opened the door.",
        "{P.in} there was light, and the {O.giver} of {A!} called {A.his} name.",
        "The {O.giver} of {A!} was sitting {P.in} and smiled.",
    ),
    "brave_now": (
        '"I was afraid of the dark, but I came," said {A!}.',
        "{A} was not afraid of {scary} any more.",
        "Now {A} knew that {virtue} was stronger than {scary}.",
        "{A} told {A.his} {O.giver} everything and laughed.",
    ),
    "return_lent": (
        "The next {day}, {A} gave the {Q.color} {Q} back to {B.name}.",
        "{A} went to {B.name} and gave {B.him} {B.his} {Q} again.",
        '"Here is your {Q}, {B.name}, it helped me so much," said {A!}.',
    ),
}
