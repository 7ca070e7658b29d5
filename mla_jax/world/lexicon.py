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
jolly daring generous modest humble fearless graceful witty wise loyal neat hungry
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
necklace bracelet crown cape mask map purse pencil brush feather shell pebble marble
yo-yo puzzle robot truck train car plane rocket sled scooter shovel rake net rope ladder candle
clock mirror comb key flute guitar horn fan jar bottle vase pot pan teapot tray plate jug sponge
towel apron glove sock slipper belt badge stamp card locket lamp chair stool kettle windmill compass
telescope crayon stroller hammock banjo violin harp tambourine rattle pinwheel snorkel anchor paddle
canoe wheelbarrow hammer screwdriver sieve ladle thimble spool quilt cushion carpet curtain vest
sweater raincoat helmet visor wristband hairpin medal trophy magnet globe notebook envelope
letterbox stopwatch flashlight saddle horseshoe birdcage wheel slingshot boomerang parachute
skateboard scroll whisk teacup saucer
""")
# preposition that says "there" : noun
PLACES = tuple(
    tuple(item.split(":"))
    for item in _words("""
in:garden in:forest in:meadow in:park in:orchard in:barn in:cave in:kitchen in:attic in:cellar
in:library in:school in:village in:valley in:field in:stable in:shed in:courtyard in:tower in:castle
in:workshop in:bakery in:playground in:hallway in:greenhouse in:swamp in:vineyard in:cabin in:tent
in:museum in:shop in:jungle in:desert in:bedroom in:bathroom in:garage in:theater in:chapel
in:pantry in:nursery at:market at:station at:beach at:harbor at:fair at:farm at:zoo at:mill
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
lollipop dumpling noodle cupcake pudding roll lemon coconut potato mushroom turnip leek apricot fig
olive almond raspberry blueberry strawberry omelet croissant doughnut meatball pickle mango kiwi
""")
WEATHER = _words("""
sunny windy rainy cloudy snowy foggy warm cold bright stormy chilly breezy mild hot frosty misty
lovely fresh quiet drizzly muggy crisp dull humid
""")
MANNERS = _words("""
slowly quickly quietly softly gladly carefully bravely gently happily kindly politely proudly shyly
eagerly calmly cheerfully warmly loudly patiently sweetly brightly
bashfully boldly clumsily dreamily fondly gracefully hopefully merrily nervously noisily playfully
sleepily solemnly steadily thoughtfully
""")
HAPPY = _words("""
happy glad joyful proud cheerful delighted pleased excited thankful merry content overjoyed relieved
elated carefree satisfied jubilant peaceful hopeful
""")
SAD = _words("""
sad upset worried unhappy gloomy miserable lonely heartbroken troubled sorry glum tearful downcast
ashamed weary
""")
SOUNDS = _words("""
crunch splash rustle squeak thump click creak whoosh plop snap buzz clang tap boom scratch
hiss clatter whir clunk squelch ding gurgle patter
""")
SKY = _words("sun moon wind rain breeze mist thunder rainbow starlight dew")
MOVES = _words("""
ran hopped hurried skipped walked marched wandered trotted strolled raced rushed tiptoed crept
jogged dashed bounced galloped paraded scampered stepped sprinted shuffled waddled zoomed hobbled
sauntered
""")
CRIES = _words("cried shouted yelled called exclaimed cheered")
WEEPS = _words("cried sobbed gasped wailed whimpered moaned")
SAYS = _words("said whispered murmured replied answered explained declared mumbled")
FLOWERS = _words("""
tulips daisies lilies roses sunflowers poppies pansies violets daffodils buttercups bluebells orchids
lavender clover marigolds primroses snowdrops ferns reeds thistles
""")
TREES = _words("""
pines maples birches elms firs cedars poplars beeches chestnuts palms larches hazels spruces alders
sycamores hawthorns
""")
BUGS = _words("""
ants beetles crickets moths dragonflies fireflies spiders worms grasshoppers caterpillars gnats wasps
earwigs midges
""")
BIRDS = _words("""
finches larks magpies pigeons ravens doves woodpeckers gulls thrushes cuckoos herons storks wrens
nightingales blackbirds starlings swallows jays kingfishers nuthatches partridges falcons
""")
GAMES = _words("""
tag leapfrog hopscotch marbles catch pirates knights shopkeepers explorers statues charades checkers
dominoes chess hide-and-seek tug-of-war blindfold detectives astronauts dragons
""")
JOBS = _words("""
baker farmer miller tailor fisherman gardener shepherd sailor painter carpenter blacksmith postman
potter cobbler weaver shopkeeper policeman nurse doctor dentist firefighter pilot juggler cook
librarian barber mayor captain beekeeper clown woodcutter plumber mechanic conductor waiter
locksmith florist jeweler butcher lifeguard musician poet astronomer
""")
JUNK = _words("""
leaves twigs stones acorns feathers cobwebs pinecones crumbs splinters bones seeds roots straws
nails pennies rags sticks thorns weeds puddles bricks planks barrels crates sacks bottles newspapers
tires petals ashes husks peels corks candlesticks shoelaces matches horseshoes eggshells pipes tins
wires shingles
""")
OLDNESS = _words("""
dry rotten broken crooked muddy mossy sticky wet hollow rusty crumbly bent smelly forgotten tangled
dirty scattered faded cracked moldy slimy prickly withered soggy
""")
DREAMS = _words("""
pirates mermaids castles rainbows unicorns giants fairies dragons wizards comets treasures clouds
oceans volcanoes princesses dinosaurs trains parades snowflakes mountains jungles stars spaceships
islands whales trophies fireworks lighthouses submarines knights
""")
MEALS = _words("soup porridge stew bread cheese rice honey pasta custard toast jam butter milk cocoa tea juice")
DAYS = _words("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")
SEASONS = _words("spring summer autumn winter")
BODY = _words("nose cheek chin ear hand elbow knee tummy forehead shoulder")
NUMBERS = _words("two three four five six seven eight nine ten twenty")
GOODNESS = _words("kindness courage patience honesty friendship sharing trust laughter helping listening")
SCARY = _words("ghosts monsters shadows storms bats wolves witches spiders goblins snakes")
LIKENESS = _words("""
statue king queen snowman dancer giant kangaroo thunderstorm soldier acrobat gazelle champion wizard
dolphin peacock hurricane captain explorer princess hero leopard stork
""")
BIGNESS = _words("""
enormous giant huge wide long deep thick narrow steep rocky wooden leafy shady grassy dark gloomy
ancient mighty
""")
TASTES = _words("""
tasty sweet delicious warm juicy crunchy spicy creamy yummy buttery crispy sugary fresh salty
""")
TASKS = _words("""
sweep dust mow scrub polish tidy paint wash mend sort stack
""")
WORRIES = _words("""
trouble lightning darkness homework bedtime winter hunger rain burglars silence
""")
HOBBIES = _words("""
painting singing dancing reading fishing swimming knitting skating cooking climbing gardening
whistling juggling sewing drawing running sailing camping writing building skiing hiking tapping
yodeling weaving carving rowing gluing
""")

# Words that may open a sentence about a character, and clauses that may close one; no fact depends on them.
OPENERS = (
    "Then ",
    "So ",
    "But ",
    "And ",
    "After a while, ",
    "A little later, ",
    "At that moment, ",
    "Before long, ",
    "With a smile, ",
    "With a sigh, ",
    "Of course, ",
    "To tell the truth, ",
    "Believe it or not, ",
    "Without another word, ",
)
OPENING_OPENERS = (
    "In those days, ",
    "As everyone knew, ",
    "Of course, ",
    "Believe it or not, ",
    "To tell the truth, ",
)
CLOSERS = (
    ", while the {birds} sang",
    ", and the {sky} went on as before",
    ", and {a} {job} watched from far away",
    ", and nobody saw it but the {bugs}",
    ", for that is how it goes in {season}",
    ", and the {trees} whispered {manner}",
    ", and somewhere a door went {sound}",
    ", and the {flowers} nodded",
)

PRONOUNS = {
    "she": {"he": "she", "him": "her", "his": "her", "himself": "herself"},
    "he": {"he": "he", "him": "him", "his": "his", "himself": "himself"},
}
NAME_PRONOUN = {**dict.fromkeys(GIRLS, "she"), **dict.fromkeys(BOYS, "he")}
PLACE_PREPOSITION = {noun: preposition for preposition, noun in PLACES}
PLACE_NOUNS = tuple(noun for _, noun in PLACES)
KINDS = ("girl", "boy", *ANIMALS)
_ROOMS = _words("""
kitchen attic cellar library school shed workshop bakery playground hallway greenhouse museum shop
bedroom bathroom garage theater chapel pantry nursery stable market station fair circus fireplace
stairs bench porch balcony roof gate fence
""")
HOMES = tuple(noun for noun in PLACE_NOUNS if noun not in _ROOMS)
NAMES = GIRLS + BOYS + NEUTRAL

# Words any template may draw on freely; no fact depends on them.
FREE = {
    "weather": WEATHER,
    "manner": MANNERS,
    "happy": HAPPY,
    "sad": SAD,
    "sound": SOUNDS,
    "sky": SKY,
    "moved": MOVES,
    "cried": CRIES,
    "wept": WEEPS,
    "said": SAYS,
    "flowers": FLOWERS,
    "trees": TREES,
    "bugs": BUGS,
    "birds": BIRDS,
    "game": GAMES,
    "job": JOBS,
    "junk": JUNK,
    "worn": OLDNESS,
    "dream": DREAMS,
    "meal": MEALS,
    "day": DAYS,
    "season": SEASONS,
    "body": BODY,
    "number": NUMBERS,
    "virtue": GOODNESS,
    "scary": SCARY,
    "likeness": LIKENESS,
    "big": BIGNESS,
    "tasty": TASTES,
    "task": TASKS,
    "worry": WORRIES,
    "hobby": HOBBIES,
}

# What the attribute slots of characters and things can show.
ATTRIBUTES = {"kind": KINDS, "trait": TRAITS, "color": COLORS, "look": LOOKS, "giver": RELATIVES}


def nouns(role: str) -> tuple[str, ...]:
    """The nouns that a role's bare slot can show: things O Q R, places P S T U, foods W X Y."""
    return THINGS if role in "OQR" else PLACE_NOUNS if role in "PSTU" else FOODS


_A_BEFORE_VOWEL = ("unicorn", "useful", "ukulele", "uniform")
_AN_BEFORE_CONSONANT = ("honest", "hour")


def plural(noun: str) -> str:
    """The plural of a food of the lexicon."""
    if noun.endswith(("s", "ch", "sh", "x")) or noun in ("potato", "tomato"):
        return noun + "es"
    if noun.endswith("y") and noun[-2] not in "aeiou":
        return noun[:-1] + "ies"
    return noun + "s"


def article(word: str) -> str:
    """The indefinite article before `word` (by sound where spelling misleads)."""
    if word.startswith(_AN_BEFORE_CONSONANT):
        return "an"
    return "an" if word[0].lower() in "aeiou" and not word.startswith(_A_BEFORE_VOWEL) else "a"
