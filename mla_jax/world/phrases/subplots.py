"""Small stories inside a story: a kindness repaid, a find given away, a meeting kept."""

PHRASES = {
    "pocket": (
        "{S.in} {A} found {a} {R.look} {R.color} {R} and put it in {A.his} pocket.",
        "{A} picked up {a} {R.color} {R} that somebody had lost {S.in}.",
        "{a} {R.color} {R} was lying {S.in}, and {A} took it along.",
        "Among the {worn} {junk} {S.in}, {A} saw {a} {R.color} {R} and kept it.",
    ),
    "from_pocket": (
        "The {R.color} {R}, which had been lying {S.in}, was now a gift for {B.name} from {A!}.",
        "{A} still had the {R} from the {S}, {a} {R.color} one, and gave it to {B.name}.",
        "From {A.his} pocket, {A} took the {R.color} {R} and gave it to {B.name}.",
        '"I found this {R.color} {R} {S.in}, and now it is yours, {B.name}," {said} {A!}.',
    ),
    "hungry": (
        "{A} stopped, for there sat {D.name}, {a} {D.trait} {D.kind} who had not eaten since {day}.",
        "{A} met {a} {D.trait} {D.kind} named {D.name}, who was very hungry.",
        '"I am so hungry," said {a} {D.trait} {D.kind} whose name was {D!}.',
        "{a} hungry {D.kind} called {D!} looked at {A.name} with big eyes.",
    ),
    "share": (
        "{A} had a few {W.many} and gave them all to {D.name}.",
        '"You can have my {W.many}, {D.name}," {said} {A!}.',
        "So {A} shared {A.his} {W.many} with {D.name}.",
        "{D.name} got {number} {W.many} from {A!} and ate them at once.",
    ),
    "payback": (
        "{D} never forgot the {W.many} and sent {A.name} {number} {flowers}.",
        "In the evening {D} came to thank {A.name} for the {W.many}.",
        '"Those {W.many} were the best I ever had, {A.name}," {said} {D!}.',
        "{A} got a letter from {D.name}, who was still talking about the {W.many}.",
    ),
    "vow": (
        "{A} promised {B.name} to meet {B.him} {S.in} on {day}.",
        '"Let us meet {S.in} on {day}, {B.name}," said {A!}.',
        "{B.name} made {A!} promise to come and look at the {birds} {S.in} one day.",
        "On {day}, {A} was to wait for {B.name} {S.in}, and it was a promise.",
    ),
    "vow_kept": (
        "{A} did not forget the promise, and on {day} {B.name} found {A.him} {S.in}.",
        "And on {day}, {A} and {B.name} met {S.in}, as they had promised.",
        "There was still the promise, so {A} went to meet {B.name} {S.in}.",
        "{B.name} was {happy} when {A} came to meet {B.him} {S.in}, as promised.",
    ),
}
