"""How stories end: thanks, the way home, and a look back at what was set up."""

PHRASES = {
    "feel_happy": (
        "{A} was so {happy} that {A.he} [danced|sang|jumped|laughed].",
        "{A} felt {happy} again.",
        "{A} smiled {manner} and was {happy}.",
        "Now no {A.kind} in the world was as {happy} as {A!}.",
        "{A} felt as {happy} as {a} {likeness}.",
        '"What {a} {happy} day!" {cried} {A!}.',
    ),
    "thank": (
        '"Thank you, {C.name}, you are {a} {C.trait} {C.kind}," said {A!}.',
        "{A} gave the {C.trait} {C.kind} a big hug, and {C.name} was {happy}.",
        "{A} thanked {C.name}, and {C.he} smiled {manner}.",
        "{A} invited {C.name} to come and play {game} on {day}.",
        '"Any time," {said} {C!}, and waved {manner}.',
        "{C} would not take any money, only {number} {flowers}.",
    ),
    "go_home": (
        "In the evening {A} went back to the little house {P.in}.",
        "Back home {P.in}, {A} had {meal} for dinner.",
        "{A} {moved} home, and {P.in} a light was burning.",
        "Soon {A} was home again {P.in}, where everything was {weather} and quiet.",
        "The family of {A!} was waiting {P.in}.",
    ),
    "keep": (
        "From then on {A} never let go of {A.his} {O.color} {O}.",
        "{A} put the {O.color} {O} next to {A.his} bed.",
        "That night the {O.color} {O} lay safe beside {A!}.",
        "Before going to sleep, {A} looked at {A.his} {O} and saw that it was {O.color} and {O.look}.",
    ),
    "remember": (
        '"I must tell my {O.giver}," thought {A!}.',
        "The {O} from {A.his} {O.giver} was dearer to {A!} than ever.",
        "The {O.giver} of {A!} would be {happy} to hear it.",
        "In a letter to {A.his} {O.giver}, {A} wrote about the whole day.",
    ),
    "friend_end": (
        "{B.name} still had {B.his} {Q.color} {Q}, and {A} still had a friend.",
        "{B} went home too, with {B.his} {Q.color} {Q}.",
        "And the {Q}, the {Q.color} one, was still with {B.name}.",
        "{A} waved, and {B.name} waved back with the {Q.color} {Q}.",
    ),
    "owners": (
        "The {Q} still belonged to {B.name}, and the {O} still belonged to {A!}.",
        "The {O} was the treasure of {A!}, just as the {Q} was the treasure of {B.name}.",
        "Nobody but {A!} owned the {O}, and nobody but {B.name} owned the {Q}.",
        '"Your {Q} is {Q.color} and my {O} is {O.color}, {B.name}," {said} {A!}.',
        "{A} had {a} {O} that was {O.color}, and {B.name} had {a} {Q} that was {Q.color}.",
    ),
    "eat_favorite": (
        "For dinner there were {W.many}, the food {A} liked best.",
        "{A} ate {number} {W.many}, because nothing tasted better to {A.him}.",
        'When {A} was asked what {A.he} would like to eat, {A.he} said, "I want {W.many}, of course!"',
    ),
    "sleep": (
        "Then {A} went to sleep and dreamed of {dream}.",
        "The {sky} came, and {A} closed {A.his} eyes.",
        "{A} yawned, and soon {A.he} was asleep.",
        '"Good night," said {A!} to the {sky}.',
        "All was quiet, and only the {bugs} heard {A!} snore.",
    ),
    "moral": (
        "{A.name} and {B.name} stayed friends for ever.",
        "{A} learned that {virtue} and {virtue} are worth more than anything.",
        "And they all lived happily ever after.",
        "And {A} never forgot that {day}.",
        "It was {B.name} who said that {virtue} is the best gift, and {A} agreed.",
        "Since then {A} believes in {virtue}.",
    ),
}
