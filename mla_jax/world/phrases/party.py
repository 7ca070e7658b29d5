"""A birthday: the right gift, the right food, the right place have to be remembered."""

PHRASES = {
    "birthday": (
        "On {day} it would be the birthday of {B.name}, and {A} had to think of a gift.",
        '"My birthday is on {day}," said {B.name}, and {A} was excited.',
        "The birthday of {B.name} was near, and {A} counted the days.",
        "{B.name} would soon be {number} years old, and {A} wanted to make {B.him} {happy}.",
    ),
    "invite": (
        '"The party will be {P.in}," said {B!}.',
        "{B} asked everybody to come {P.in}.",
        "{B} wanted to have the party {P.in}, with {flowers} on every table.",
        '"Please come {P.in}, and bring a song," {said} {B!}.',
    ),
    "wants": (
        '"All I wish for is {a} {Q.color} {Q}," {said} {B!}.',
        "{B} had always wanted {a} {Q.color} {Q}.",
        "In a letter, {B} wrote about {a} {Q.color} {Q}.",
        "{B} dreamed of {a} {Q.color} {Q} every night.",
    ),
    "shop_wrong": (
        "The {job} had only {worn} {junk} and {meal}.",
        "{A} asked {a} {job}, who had sold the last one on {day}.",
        "{A} looked {S.in}, but there was nothing but {junk}.",
        "{S.in} {A} found {number} {junk}, but no gift.",
    ),
    "shop_right": (
        "At last {A} found {a} {Q}, and it was {Q.color}, just as {B.name} had wished.",
        "{C.name} had one {Q} left, and it was {Q.color}, so {A} was lucky.",
        "In a box of {worn} {junk}, {A} saw {a} {Q.color} {Q}.",
        "{A} {moved} from door to door until {A.he} found {a} {Q} that was {Q.color}.",
    ),
    "helper_party": (
        "{C!}, {a} {C.trait} {C.kind}, came by and asked what was wrong.",
        "{A} asked {C.name}, {a} {C.trait} {C.kind}, for help.",
        "{a} {C.trait} {C.kind} named {C!} heard about it and wanted to help.",
    ),
    "bake_for": (
        "{A} also made something with {W.many}, because {B.name} liked them best.",
        "There had to be {W.many} too, the food that {B.name} loved.",
        "{A} packed a basketful of {W.many} for {B.name}.",
        "{A} remembered what {B.name} liked to eat and picked some {W.many}.",
    ),
    "mishap": (
        "On the way, {A} fell over some {worn} {junk}, but nothing broke.",
        "The rain came, and {A} got wet, but {A.he} did not turn back.",
        "{a} {big} shadow scared {A!}, but it was only {a} {job}.",
        "{A} took the wrong path and had to ask {a} {job} for help.",
        "{A} was late and {moved} faster and faster.",
    ),
    "arrive": (
        "When {A} came to the party {P.in}, everybody clapped.",
        "{P.in}, the party had begun, and {A} was let in.",
        "{A} was the last to arrive {P.in}.",
        "The others sang {P.in} when {A} {moved} in.",
    ),
    "give": (
        "{A} gave the {Q.color} {Q} to {B.name}.",
        '"This {Q} is for you, {B.name}," said {A!}.',
        "{B.name} opened the box from {A!} and found {a} {Q}, {a} {Q.color} one, inside.",
        "{A} held out the gift, and {B.name} pulled out {a} {Q.color} {Q}.",
    ),
    "glad_gift": (
        "{B} was so {happy} that {B.he} danced like {a} {likeness}.",
        '"How did you know, {A.name}?" {cried} {B!}.',
        "{B} hugged {A.name} and did not want to let go.",
        '"It is the best {Q} in the world," {said} {B!}.',
    ),
    "feast": (
        "They ate {W.many} until the {sky} came.",
        "{B} ate {number} {W.many} all by {B.himself}.",
        "The {W.many} were {tasty}, and soon they were all gone.",
        "{B} put {W.many} on every leaf and shared them {manner}.",
    ),
}
