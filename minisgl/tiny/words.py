"""The small world of the embedded model: who lives there, what they own, what may happen to them.

Tables only. Every line of a story hangs on one named fact (the animal, the thing, the place, ...),
so that a very small model can learn the whole story as a function of the request.
"""

# ruff: noqa: E501 (a row of a table is a line)

from typing import NamedTuple


class Animal(NamedTuple):
    """What follows from the kind of animal, unless the request says otherwise."""

    trait: str
    move: str
    joy: str
    friend: str
    name: str
    siblings: str
    plot: str
    topic: str
    place: str
    colour: str


class Thing(NamedTuple):
    """How a thing is lost, where it turns up, and what is good about it."""

    lost: str
    where: str
    good: str


GIRLS = (
    "Mia Anna Ella Lucy Rosa Nora Lily Emma Clara Ida Zoe Ruby Maya Alma Greta Hanna Iris Jade Kira Lena "
    "Nina Olga Paula Sara Tina Vera Wilma Yara Daisy Fiona Molly Bella"
).split()
BOYS = (
    "Tom Ben Max Leo Sam Finn Oscar Paul Hugo Ivan Jack Karl Luke Milo Noah Otto Pete Ralf Simon Theo "
    "Ugo Victor Walter Adam Bruno Carlo David Emil Felix George Henry Jonas"
).split()
NAMES = tuple(GIRLS + BOYS)
SURNAMES = tuple(
    (
        "Brook Stone Field Wood Hill Lake Snow Rain Bell Baker Cook Fisher Miller Potter Reed Rose "
        "Sharp Swift Black White Green Brown Gray Young Long Short Winter Summer March Berg Holm Vale"
    ).split()
)
COLOURS = tuple("red blue green yellow white black brown pink purple orange grey golden".split())
NUMBERS = tuple("zero one two three four five six seven eight nine ten eleven twelve".split())
DAYS = tuple("Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split())


def _animals(table: str) -> dict[str, Animal]:
    rows = (line.split(" | ") for line in table.strip().splitlines())
    return {row[0]: Animal(*row[1:]) for row in rows}


ANIMALS = _animals("""
fox | clever | ran along the path | jumped for joy | owl | Finn | three sisters | lost | kite | forest | red
bear | strong | walked up the hill | danced in a circle | bee | Bruno | two brothers | make | honey cake | valley | brown
rabbit | quick | hopped through the grass | hopped up and down | hedgehog | Ruby | nine sisters | lost | ball | meadow | blue
mouse | tiny | ran along the wall | clapped both paws | cat | Molly | seven brothers | fear | thunder | farm | grey
owl | wise | flew over the trees | hooted with delight | squirrel | Walter | ten sisters | see | the stars | forest | white
cat | proud | walked on soft feet | purred all evening | dog | Clara | four brothers | found | bell | village | black
dog | loyal | ran down the road | barked with joy | cat | Max | five sisters | found | ball | park | orange
duck | funny | swam across the water | splashed in the water | frog | Daisy | six sisters | see | the sea | lake | yellow
frog | noisy | jumped from stone to stone | sang a loud song | duck | Hugo | eight brothers | lost | hat | river | green
hen | busy | ran across the yard | danced in a circle | goat | Greta | two sisters | make | apple pie | farm | brown
goat | stubborn | climbed over the rocks | jumped for joy | lamb | Otto | ten brothers | see | the snow | mountain | white
pig | cheerful | rolled down the hill | rolled in the mud | hen | Paula | six brothers | make | carrot cake | farm | pink
horse | fast | ran like the wind | ran in circles | dog | Theo | three brothers | gift | scarf | meadow | golden
lamb | gentle | walked through the grass | jumped for joy | goat | Lily | two sisters | fear | the dark | valley | white
squirrel | lively | climbed from tree to tree | danced on a branch | owl | Zoe | four sisters | found | key | park | golden
hedgehog | shy | walked under the bushes | smiled from ear to ear | rabbit | Emil | three sisters | fear | loud noises | garden | purple
turtle | patient | walked very slowly | smiled from ear to ear | otter | Olga | five brothers | see | the city | beach | green
beaver | hardworking | swam down the river | splashed in the water | otter | Karl | four brothers | gift | boat | river | brown
badger | grumpy | walked through the night | laughed out loud | hedgehog | Oscar | ten sisters | lost | lamp | forest | black
otter | playful | swam across the water | splashed in the water | beaver | Maya | two brothers | gift | drum | lake | blue
crow | curious | flew over the roofs | sang a loud song | mouse | Jack | six sisters | found | coin | castle | golden
bee | brave | flew from flower to flower | danced in a circle | bear | Bella | nine sisters | make | honey cake | garden | yellow
snail | slow | crawled under the leaves | smiled from ear to ear | frog | Simon | eight sisters | see | the rainbow | garden | pink
deer | graceful | ran between the trees | jumped for joy | rabbit | Iris | ten brothers | fear | deep water | forest | brown
""")

FRIEND_LINES = {
    "owl": "I see far from my branch. Follow me",
    "bee": "I know every corner here. Come along",
    "hedgehog": "Slow and steady, we will do it",
    "cat": "I am very good at this",
    "squirrel": "I will climb up and help you",
    "dog": "My nose is never wrong",
    "frog": "Jump with me and do not worry",
    "duck": "Come with me, I know the way",
    "goat": "I am not afraid of anything",
    "lamb": "Two can do it better than one",
    "hen": "First we sit down and think",
    "rabbit": "My ears are long and I hear everything",
    "otter": "That sounds like fun. Let us go",
    "beaver": "Good work needs good friends",
    "mouse": "I am small, but I can help",
    "bear": "I am big and I will take care of you",
}

PLACES = {
    "forest": ("in the forest", "The trees were tall and the birds sang all day."),
    "valley": ("in the valley", "In the morning the valley was full of mist."),
    "meadow": ("in the meadow", "The grass was soft and full of flowers."),
    "farm": ("on the farm", "Every morning the sun came up behind the barn."),
    "village": ("in the village", "The houses had little windows and bright doors."),
    "park": ("in the park", "Children played there until the evening."),
    "lake": ("by the lake", "The water was clear and calm."),
    "river": ("by the river", "The water talked quietly all night."),
    "mountain": ("on the mountain", "The air was cold and the sky was near."),
    "garden": ("in the garden", "It smelled of roses and fresh bread."),
    "beach": ("on the beach", "The waves brought new shells every day."),
    "castle": ("in the castle", "The old walls were full of secrets."),
}


def _things(table: str) -> dict[str, Thing]:
    rows = (line.split(" | ") for line in table.strip().splitlines())
    return {row[0]: Thing(*row[1:]) for row in rows}


THINGS = _things("""
kite | The wind took it away. | at the top of a tall tree | It danced in the sky.
ball | It rolled down the road. | behind a big stone | It bounced higher than a house.
hat | A strong wind blew it away. | on the head of a scarecrow | It was warm and soft.
boat | It floated away in the rain. | under the old bridge | It sailed as fast as a fish.
drum | It fell off the cart. | in the tall grass | It sounded like a happy heart.
book | It fell out of the bag. | on a bench in the sun | It was full of pictures.
bell | The string was broken. | at the bottom of the well | It rang as clear as water.
lamp | Nobody knew where it was. | in the cellar | It shone like a little moon.
key | There was a hole in the pocket. | under the door mat | It opened a secret door.
cup | It was not on the shelf. | next to the well | It was just right for warm milk.
scarf | It slipped off in the snow. | on a fence | It was long enough for two.
basket | It was left on the road. | under an apple tree | It could hold a hundred nuts.
coat | It was left at the market. | on a nail in the barn | It had six big pockets.
coin | It fell through a crack. | between two boards | It shone in the sun.
map | The rain carried it away. | in a hollow tree | It showed every road in the world.
flute | It fell into the leaves. | in an empty nest | It played the sweetest song.
cart | It rolled away at night. | at the foot of the hill | It had four strong wheels.
doll | It fell out of the window. | in a bed of flowers | It had a friendly smile.
feather | The breeze carried it off. | on the still water | It was as light as air.
button | The thread was too thin. | in a deep footprint | It looked like a tiny sun.
""")

FOODS = {
    "honey cake": ("honey", "warm and sweet"),
    "apple pie": ("apples", "of cinnamon"),
    "carrot cake": ("carrots", "fresh and good"),
    "berry tart": ("berries", "of summer"),
    "nut roll": ("nuts", "like a warm oven"),
    "plum cake": ("plums", "rich and sweet"),
    "pear tart": ("pears", "of butter"),
    "corn salad": ("corn", "of fresh herbs"),
    "cherry pudding": ("cherries", "like a party"),
    "pumpkin stew": ("pumpkins", "of autumn"),
}
FEARS = {
    "the dark": ("Look, the moon is your night light", "looked at the moon"),
    "thunder": ("Thunder is only the clouds playing drums", "drummed along"),
    "loud noises": ("Let us make a louder noise together", "shouted as loud as they could"),
    "deep water": ("Hold on to me and kick your feet", "swam a little every day"),
    "spiders": ("Spiders only want to knit", "watched a spider at work"),
    "high places": ("Do not look down, look ahead", "climbed one step at a time"),
    "strangers": ("Every friend was a stranger once", "said hello to everyone"),
    "storms": ("A storm always ends", "counted until the storm was over"),
}
SIGHTS = {
    "the sea": ("It was blue and wide and had no end.", "a long road"),
    "the stars": ("They were so many that nobody could count them.", "a dark hill"),
    "the snow": ("It was white and soft and very cold.", "a high pass"),
    "the city": ("It was full of lights and music.", "a busy road"),
    "the rainbow": ("It had seven colours and touched the ground.", "a wet field"),
    "the waterfall": ("It was louder than a hundred drums.", "a steep path"),
    "the desert": ("It was warm and quiet and full of sand.", "a dry plain"),
    "the old tower": ("It was as tall as a cloud.", "a deep wood"),
}
PLOTS = ("lost", "found", "make", "fear", "see", "gift")

SHOPS = {
    "toy shop": ("kite", "ball", "doll", "drum"),
    "book shop": ("book", "map", "pencil", "card"),
    "bakery": ("cake", "pie", "loaf", "tart"),
    "flower shop": ("rose", "tulip", "lily", "pot"),
    "music shop": ("flute", "drum", "bell", "horn"),
    "hat shop": ("hat", "scarf", "ribbon", "coat"),
    "museum": ("ticket", "guide", "poster", "coin"),
    "zoo": ("ticket", "balloon", "map", "bottle"),
    "lamp shop": ("lamp", "candle", "mirror", "clock"),
    "tea house": ("cup", "pot", "cake", "biscuit"),
}
SIGN_OFFS = (
    "Ahoy!",
    "Meow!",
    "Beep!",
    "Have a nice day!",
    "Goodbye!",
    "At your service.",
    "Hooray!",
    "Peace and tea.",
)
UNKNOWN_TOPICS = (
    "the weather today | the price of gold | the king of France | the capital of Peru | the score of the game | "
    "my phone number | the news | the age of the universe | the train to Rome | the next president | "
    "the stock market | the time in Tokyo | my favourite film | the height of the moon | black holes | "
    "quantum physics | the speed of light | the lottery numbers | my password | the name of my teacher | "
    "the tax law | the history of Rome | the best phone | French verbs | the human brain"
).split(" | ")


def article(words: str) -> str:
    """`words` with "a" or "an" before it: "a red kite", "an orange hat"."""
    return ("an " if words[0] in "aeiou" else "a ") + words


def pronouns(name: str) -> tuple[str, str, str]:
    """Subject, possessive and object pronoun of a name of `NAMES`."""
    return ("she", "her", "her") if name in GIRLS else ("he", "his", "him")
