"""A promise: something has to be brought to someone, and is nearly forgotten."""

PHRASES = {
    "errand": (
        'The {Q.giver} of {A!} said, "Please take this {Q.color} {Q} to {C.name} {P.in}."',
        "{A} was sent out to bring {a} {Q.color} {Q} to {C.name}, who lived {P.in}.",
        "There was {a} {Q.color} {Q} to be taken to {C.name} {P.in}, and {A} was the one to do it.",
        '"Can you carry the {Q.color} {Q} to {C.name} {P.in}?" asked the {Q.giver} of {A!}.',
    ),
    "who_is": (
        "{C} was {a} {C.trait} {C.kind} who could not walk well.",
        "Everybody said that {C} was the most {C.trait} {C.kind} they knew.",
        "{C}, {a} {C.trait} {C.kind}, had waited for it since {day}.",
    ),
    "promise": (
        '"I promise to be back before {meal} is on the table," {said} {A!}.',
        '"I will not stop on the way," {said} {A!} {manner}.',
        "{A} promised to hurry.",
        "{A} gave {A.his} word to {A.his} {Q.giver}.",
    ),
    "distract": (
        "But on the way {A} stopped {S.in} and put the {Q} down.",
        "{S.in} {A} met {B.name}, who wanted to play {game}, and put the {Q} on the ground.",
        "Then {A} heard music {S.in}, and soon the {Q} lay among the {flowers}.",
        "It was so {weather} {S.in} that {A} laid the {Q} down and rested.",
    ),
    "forget": (
        "{A} forgot the time and the {Q}.",
        "Hours went by, and {A} thought only of {game}.",
        "When {A} went on, {A.his} hands were empty.",
        "{A} {moved} on without it.",
    ),
    "reach": (
        "{P.in}, {A} knocked at the door of {C.name}.",
        "Finally {A} saw {C.name}, who was waiting {P.in}.",
        "{C.name} waved {P.in} when {A} came near.",
    ),
    "ask_errand": (
        '"Did you bring me something?" asked {C!}.',
        '"Where is the {Q}?" asked {C!} {manner}.',
        "{C} looked at the empty hands of {A.name}.",
    ),
    "recall": (
        '"Oh no, I left it {S.in}!" {cried} {A!}.',
        "Then {A} remembered that the {Q} was still {S.in}.",
        '"I must run back, because the {Q} is {S.in}," {said} {A!}.',
        "{A} felt hot, for the {Q.color} {Q} was lying {S.in}.",
    ),
    "run_back": (
        "{A} {moved} like {a} {likeness} and found it {S.in}.",
        "Luckily, the {Q} was still {S.in}, as {Q.color} as before.",
        "{A} turned round, {moved} back and picked up something {Q.color} {S.in}.",
    ),
    "deliver": (
        "Then {A} gave the {Q.color} {Q} to {C.name}.",
        "At last {C.name} held the {Q.color} {Q}, and {A} was out of breath.",
        '"Here is your {Q}, {C.name}," said {A!}.',
        "{C} took the {Q} from {A.name} and forgave {A.him}.",
    ),
    "thank_errand": (
        '"Tell your {Q.giver} that I am {happy}," {said} {C!}.',
        "{C} gave {A.name} some {tasty} {meal} for the way back.",
        "{C} was {happy} and told {A.name} about {dream}.",
    ),
    "report": (
        "At home, {A} told {A.his} {Q.giver} the whole story.",
        "The {Q.giver} of {A!} asked about {C.name}, and {A} told the truth.",
        '"Did {C.name} get the {Q.color} one?" asked the {Q.giver} of {A!}.',
    ),
}
