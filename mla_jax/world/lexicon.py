"""The world's words, by kind. Everything here is shared by the generator and the checker.

Colour words, place nouns, names and animal kinds occur in a story only where a fact stands behind them, so
that a wrong one is a contradiction and not a matter of taste.
"""


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


GIRLS = _words("""
Lily Mia Anna Lucy Emma Sara Zoe Ella Nora Clara Molly Ruby Sophie Amy Ivy Julia Tina Maya Lena Rosa
Hanna Kate Jane Alice Betty Dora Fiona Greta Heidi Iris June Kira Laura Nina Olga Polly Rita Stella
Tess Vera Wendy Yara Zara Paula Martha
""")
BOYS = _words("""
Tom Ben Max Leo Tim Jack Sam Finn Noah Luke Oscar Peter Adam Hugo Felix Anton Billy Carl David Eric
Fred George Henry Ivan Jonas Karl Liam Mark Ned Omar Paul Ravi Simon Toby Victor Walter Yusuf Zack
Theo Milo Otis Ray Joey Andy Bruno
""")
# Names that carry no gender: their pronoun is a fact of the story, set up in its first sentences.
NEUTRAL = _words("""
Pip Button Pebble Socks Biscuit Pepper Muffin Nibbles Waffles Sunny Fluff Patch Twinkle Bubbles
Whiskers Cricket Rusty Snowy Tuffy Bean Acorn Cocoa Dusty Fidget Ginger Jelly Koko Lolly Mango
Noodle Oreo Pickle Quill Raisin Scout Toffee Velvet Wiggles Ziggy Marble Sparky Teddy Boots Misty
Honey
""")
ANIMALS = _words("""
rabbit fox hedgehog squirrel mouse bear owl duck frog cat dog pony goat lamb piglet turtle badger
otter beaver deer raccoon kitten puppy goose hen sparrow robin crow penguin monkey elephant lion
tiger koala panda donkey mole hamster parrot swan calf camel zebra giraffe seal snail lizard ladybug
bee butterfly
""")
TRAITS = _words("""
little kind brave clever cheerful gentle curious shy quiet friendly funny lively polite careful
silly young playful honest helpful patient dreamy busy sleepy bold merry thoughtful stubborn proud
jolly daring
""")
COLORS = _words("""
red blue green yellow purple orange pink white black brown golden silver gray violet
""")
LOOKS = _words("""
tiny big old new shiny striped spotted dusty pretty plain smooth tall round soft fine sturdy neat
fancy heavy light
""")
THINGS = _words("""
kite ball drum boat hat scarf bucket basket whistle trumpet wagon lantern umbrella doll puppet
balloon flag bell cup bowl spoon blanket pillow ribbon mitten coat cap shoe boot button bead ring
necklace bracelet crown cape mask book map box bag purse pencil brush feather shell pebble marble
top yo-yo puzzle robot truck train car plane rocket sled scooter shovel rake net rope ladder candle
clock mirror comb key flute guitar horn fan jar bottle vase pot pan teapot tray plate jug sponge
towel apron glove sock slipper belt badge stamp card locket lamp chair stool kettle windmill compass
telescope crayon
""")
# preposition that says "there" : noun
PLACES = tuple(
    tuple(item.split(":"))
    for item in _words("""
in:garden in:forest in:meadow in:park in:orchard in:barn in:cave in:kitchen in:attic in:cellar
in:library in:school in:village in:valley in:field in:stable in:shed in:courtyard in:tower in:castle
in:workshop in:bakery in:playground in:hallway in:greenhouse in:swamp in:vineyard in:cabin in:tent
in:museum in:shop in:jungle in:desert in:bedroom in:bathroom in:garage in:theater in:chapel
in:pantry in:nursery at:market at:station at:beach at:harbor at:fair at:farm at:zoo at:mill at:well
at:circus at:lighthouse by:river by:lake by:pond by:brook by:bridge by:gate by:fence by:fountain
by:waterfall by:fireplace by:shore on:hill on:island on:roof on:porch on:mountain on:balcony on:dock
on:cliff on:lawn on:stairs under:oak under:willow under:haystack under:bench
""")
)
RELATIVES = _words("""
mother father grandmother grandfather aunt uncle sister brother cousin teacher neighbor godmother
""")
FOODS = _words("""
apple pear plum peach cherry berry carrot cookie muffin bun cake pie pancake waffle sandwich pretzel
cracker banana melon grape nut walnut pumpkin tomato cucumber radish bagel tart biscuit honeycomb
lollipop dumpling noodle cupcake pudding roll lemon coconut potato mushroom
""")
WEATHER = _words("""
sunny windy rainy cloudy snowy foggy warm cold bright stormy chilly breezy mild hot frosty misty
lovely fresh quiet
""")
MANNERS = _words("""
slowly quickly quietly softly gladly carefully bravely gently happily kindly politely proudly shyly
eagerly calmly cheerfully warmly loudly patiently sweetly brightly
""")
HAPPY = _words("""
happy glad joyful proud cheerful delighted pleased excited thankful merry content overjoyed relieved
""")
SAD = _words("""
sad upset worried unhappy gloomy miserable lonely heartbroken troubled sorry
""")
SOUNDS = _words("""
crunch splash rustle squeak thump click creak whoosh plop snap buzz rattle clang tap boom scratch
hiss
""")
SKY = _words("""
sun moon wind rain clouds stars breeze mist snow thunder
""")

PRONOUNS = {
    "she": {"he": "she", "him": "her", "his": "her", "himself": "herself"},
    "he": {"he": "he", "him": "him", "his": "his", "himself": "himself"},
}
NAME_PRONOUN = {**dict.fromkeys(GIRLS, "she"), **dict.fromkeys(BOYS, "he")}
PLACE_PREPOSITION = {noun: preposition for preposition, noun in PLACES}
PLACE_NOUNS = tuple(noun for _, noun in PLACES)
KINDS = ("girl", "boy", *ANIMALS)
NAMES = GIRLS + BOYS + NEUTRAL

# Words any template may draw on freely; no fact depends on them.
FREE = {
    "weather": WEATHER,
    "manner": MANNERS,
    "happy": HAPPY,
    "sad": SAD,
    "sound": SOUNDS,
    "sky": SKY,
}

_A_BEFORE_VOWEL = ("unicorn", "useful", "ukulele", "uniform")
_AN_BEFORE_CONSONANT = ("honest", "hour")


def article(word: str) -> str:
    """The indefinite article before `word` (by sound where spelling misleads)."""
    if word.startswith(_AN_BEFORE_CONSONANT):
        return "an"
    return "an" if word[0].lower() in "aeiou" and not word.startswith(_A_BEFORE_VOWEL) else "a"
