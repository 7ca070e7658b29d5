"""Sentences of the stories in which something is lost and found again."""

PHRASES = {
    "intro": (
        "Once upon a time, there was {a} {A.trait} {A.kind} named {A.name}.",
        "{A.name} was {a} {A.trait} {A.kind}.",
        "[Long ago|One day|Not so long ago], there lived {a} {A.trait} {A.kind} called {A.name}.",
        "This is the story of {A.name}, {a} {A.trait} {A.kind}.",
        "There once was {a} {A.trait} {A.kind} whose name was {A.name}.",
        "Have you heard of {A.name}, the {A.trait} {A.kind}?",
    ),
    "home": (
        "{A} lived in a little house {P.in}.",
        "{A.his} home was {P.in}, where the {sky} could be seen every night.",
        "{A} lived with {A.his} family {P.in}.",
        "{P.in} stood the small house where {A} lived.",
        "Every morning {A} woke up in a cozy bed {P.in}.",
    ),
    "has": (
        "{A} had {a} {O.look} {O.color} {O}.",
        "What {A} loved most of all was {a} {O.look} {O.color} {O}.",
        "{A} never went anywhere without {A.his} {O.look} {O.color} {O}.",
        "{A.his} favorite thing was {a} {O}, {O.look} and {O.color}.",
        "{A} took good care of {A.his} {O}, which was {O.look} and {O.color}.",
    ),
    "gift": (
        "It was a gift from {A.his} {O.giver}.",
        "{A.his} {O.giver} had made it for {A.him}.",
        "{A} got it from {A.his} {O.giver} last winter.",
        "{A.his} {O.giver} gave it to {A.him} on {A.his} birthday.",
    ),
    "friend": (
        "{A.his} best friend was {a} {B.trait} {B.kind} named {B.name}.",
        "{A} had a friend, {B.name}, {a} {B.trait} {B.kind}.",
        "Next door lived {a} {B.trait} {B.kind} called {B.name}.",
        "{A} liked to play with {B.name}, {a} {B.trait} {B.kind}.",
    ),
    "friend_has": (
        "{A} always carried {a} {O.color} {O}.",
        "{A} had {a} {O.color} {O} that [nobody else could touch|was almost new|made everybody smile].",
        "The {O.color} {O} belonged to {A.name}.",
        "{A.name} was proud of {A.his} {O.color} {O}.",
    ),
    "weather": (
        "It was a {weather} day and the {sky} [was out|had come early|could be felt everywhere].",
        "One {weather} morning, everything smelled [sweet|new|of spring|of grass].",
        "That day the air was {weather} and {weather}.",
        "One {weather} afternoon, there was nothing to do.",
    ),
    "go_together": (
        "{A.name} and {B.name} went to play {P.in}.",
        "The two friends met {P.in}.",
        '"Let us play {P.in}," said {A.name}.',
        "{A} asked {B.name} to come along and play {P.in}.",
    ),
    "play": (
        "They played [hide and seek|tag|pirates|school] until they were tired.",
        "They ran and jumped and laughed {manner}.",
        "{A} [climbed|rolled|danced|hopped] {manner} while {B.name} [sang|clapped|counted to ten|watched].",
        "{sound}, {sound}, went the leaves under their feet.",
    ),
    "lose": (
        "But when it was time to go, {A} could not find {A.his} {O}.",
        "Suddenly {A} saw that {A.his} {O} was gone.",
        "Then {A} reached for {A.his} {O}, but it was not there.",
        "All at once {A} noticed that the {O} was missing.",
    ),
    "cry_loss": (
        '"Where is my {O.color} {O}?" cried {A.name}.',
        '"Oh no, my {O.color} {O} is lost!" said {A.name}.',
        '"I can not see my {O.color} {O} anywhere," said {A.name}.',
    ),
    "feel_sad": (
        "{A} felt very {sad}.",
        "A big tear rolled down {A.name}'s face.",
        "{A} sat down and looked {sad}.",
        "{A} was so {sad} that {A.he} could not speak.",
    ),
    "comfort": (
        '"Do not worry, we will find it," said {A} {manner}.',
        "{A} [hugged|patted|held] {B.name} {manner}.",
        '"I will help you look," said {A.name}.',
        "{A} told {B.name} not to be {sad}.",
    ),
    "search": (
        "First they looked {P.in}, but it was not there.",
        "They searched {P.in} and found nothing but [dust|old leaves|a lost penny|a sleepy cat].",
        "{A} looked {P.in} too, but {A.he} found nothing.",
        "Nothing was to be seen {P.in}.",
    ),
    "meet": (
        "On the way they met {a} {C.trait} {C.kind} named {C.name}.",
        "Just then {a} {C.trait} {C.kind} came along, and {C.his} name was {C.name}.",
        "{a} {C.kind} called {C.name} was [resting|singing|humming] there, and {C.he} looked {C.trait}.",
    ),
    "ask": (
        '"Have you seen {a} {O}?" asked {A} {manner}.',
        "{A} asked {C.name} about the {O}.",
        '"Please, {C.name}, did you see my {O}?" asked {A}.',
    ),
    "clue": (
        '"I saw something {O.color} {P.in}," said {C}.',
        "{C} had seen something {O.color} {P.in}.",
        '"There is something {O.color} {P.in}," said {C} {manner}.',
    ),
    "go_find": (
        "They [ran|hurried|raced|walked] as fast as they could until they were {P.in}.",
        "{A} thanked {C.name} and soon stood {P.in}.",
        "So {A} went to look {P.in}.",
    ),
    "find": (
        "There lay the {O}, as {O.color} as ever.",
        "And there, {P.in}, was the {O.color} {O}!",
        "{A} looked up and saw something {O.color}, and it was {A.his} {O}!",
        "Under some leaves {A} found the {O.look} {O.color} {O}.",
    ),
    "feel_happy": (
        "{A} was so {happy} that {A.he} [danced|sang|jumped|laughed].",
        "{A} felt {happy} again.",
        "{A} smiled and hugged {A.his} {O}.",
    ),
    "thank": (
        '"Thank you, {C.name}, you are {a} {C.trait} {C.kind}," said {A.name}.',
        "{A} gave the {C.kind} a big hug, and {C.name} was {happy}.",
        "{A} thanked {C.name}, and {C.he} smiled {manner}.",
    ),
    "go_home": (
        "In the evening they all went back to the little house {P.in}.",
        "Back home {P.in}, it was time for dinner.",
        "{A} walked home, and {P.in} a light was burning.",
    ),
    "keep": (
        "From then on {A} never let go of {A.his} {O.color} {O}.",
        "{A} put the {O.color} {O} next to {A.his} bed.",
        "That night the {O.color} {O} lay safe beside {A.name}.",
    ),
    "remember": (
        '"I must tell my {O.giver}," thought {A} and fell asleep.',
        "The {O} from {A.his} {O.giver} was safe again.",
        "{A.his} {O.giver} would be {happy} too.",
    ),
    "moral": (
        "{A.name} and {B.name} stayed friends for ever.",
        "And {A} learned to look after {A.his} things.",
        "And they all lived happily ever after.",
    ),
}
