"""The names a picture can have, and which drawings of which style show them.

Unicode gives every emoji a label and a subgroup. A *name* here is what a person would say:
several labels may share one ("dog face" and "dog" are both a dog), and a label that nobody
would say is written plainly. Everything below is data and lookups; no pictures are touched.
"""

import json
import re
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

HELD_OUT_STYLE = "twemoji"
"""Never trained on, and never looked at to choose names or weights."""

ICONIFY_STYLES = (
    "noto",
    "noto-v1",
    "fluent-emoji",
    "fluent-emoji-flat",
    "emojione",
    "fxemoji",
    "streamline-emojis",
    HELD_OUT_STYLE,
)
STYLES = ICONIFY_STYLES + ("fluent-emoji-3d",)
TRAINING_STYLES = tuple(style for style in STYLES if style != HELD_OUT_STYLE)

MERGED = {
    "dog": "dog face, dog",
    "cat": "cat face, cat",
    "monkey": "monkey face, monkey",
    "tiger": "tiger face, tiger",
    "horse": "horse face, horse",
    "cow": "cow face, cow",
    "pig": "pig face, pig",
    "mouse": "mouse face, mouse",
    "rabbit": "rabbit face, rabbit",
    "camel": "camel, two-hump camel",
    "whale": "spouting whale, whale",
    "dragon": "dragon face, dragon",
    "chick": "hatching chick, baby chick, front-facing baby chick",
    "ladybug": "lady beetle",
    "bee": "honeybee",
    "dinosaur": "sauropod, T-Rex",
    "shell": "spiral shell",
    "caterpillar": "bug",
    "sheep": "ewe",
    "rhino": "rhinoceros",
    "hippo": "hippopotamus",
    "clover": "shamrock, four leaf clover",
    "tree": "evergreen tree, deciduous tree",
    "flower": "blossom",
    "leaf": "leaf fluttering in wind, fallen leaf",
    "corn": "ear of corn",
    "chili": "hot pepper",
    "apple": "red apple, green apple",
    "kiwi": "kiwi fruit",
    "orange": "tangerine",
    "cheese": "cheese wedge",
    "baguette": "baguette bread",
    "chicken leg": "poultry leg",
    "meat": "meat on bone",
    "steak": "cut of meat",
    "fries": "french fries",
    "fried egg": "cooking",
    "salad": "green salad",
    "rice": "cooked rice",
    "curry": "curry rice",
    "soup": "steaming bowl",
    "sweet potato": "roasted sweet potato",
    "shrimp": "shrimp, fried shrimp",
    "ice cream": "soft ice cream, ice cream",
    "cake": "birthday cake, shortcake",
    "chocolate": "chocolate bar",
    "pudding": "custard",
    "honey": "honey pot",
    "milk": "glass of milk",
    "coffee": "hot beverage",
    "tea": "teacup without handle",
    "beer": "beer mug, clinking beer mugs",
    "wine": "wine glass",
    "cocktail": "cocktail glass, tropical drink",
    "champagne": "bottle with popping cork",
    "soda": "cup with straw",
    "knife": "kitchen knife",
    "globe": "globe showing Europe-Africa, globe showing Americas, globe showing Asia-Australia",
    "mountain": "snow-capped mountain, mountain, mount fuji",
    "island": "desert island",
    "house": "house, house with garden",
    "factory": "factory",
    "train": "high-speed train, bullet train, train",
    "bus": "bus, oncoming bus",
    "police car": "police car, oncoming police car",
    "taxi": "taxi, oncoming taxi",
    "car": "automobile, oncoming automobile, sport utility vehicle",
    "truck": "delivery truck, articulated lorry",
    "fire truck": "fire engine",
    "race car": "racing car",
    "wheelchair": "manual wheelchair, motorized wheelchair",
    "traffic light": "horizontal traffic light, vertical traffic light",
    "gas pump": "fuel pump",
    "siren": "police car light",
    "life ring": "ring buoy",
    "ship": "passenger ship, ship",
    "cable car": "aerial tramway, mountain cableway",
    "UFO": "flying saucer",
    "suitcase": "luggage",
    "hourglass": "hourglass done, hourglass not done",
    "moon": "crescent moon",
    "sun": "sun, sun with face",
    "planet": "ringed planet",
    "star": "star, glowing star",
    "lightning": "high voltage",
    "umbrella": "umbrella, umbrella with rain drops",
    "beach umbrella": "umbrella on ground, beach with umbrella",
    "snowman": "snowman, snowman without snow",
    "wave": "water wave",
    "pumpkin": "jack-o-lantern",
    "gift": "wrapped gift",
    "medal": "sports medal, 1st place medal, 2nd place medal, 3rd place medal",
    "football": "american football, rugby football",
    "tennis ball": "tennis",
    "ice hockey": "ice hockey",
    "dice": "game die",
    "billiard ball": "pool 8 ball",
    "palette": "artist palette",
    "needle": "sewing needle",
    "masks": "performing arts",
    "shirt": "t-shirt",
    "tie": "necktie",
    "swimsuit": "one-piece swimsuit",
    "fan": "folding hand fan",
    "sandal": "thong sandal, woman’s sandal",
    "shoe": "man’s shoe",
    "sneaker": "running shoe",
    "boot": "woman’s boot",
    "high heel": "high-heeled shoe",
    "hat": "woman’s hat",
    "cap": "billed cap",
    "helmet": "rescue worker’s helmet",
    "gem": "gem stone",
    "speaker": "speaker high volume, speaker medium volume, speaker low volume",
    "headphones": "headphone",
    "piano": "musical keyboard",
    "phone": "mobile phone",
    "computer": "desktop computer",
    "plug": "electric plug",
    "disc": "optical disk, dvd",
    "magnifying glass": "magnifying glass tilted left, magnifying glass tilted right",
    "lantern": "red paper lantern",
    "book": "closed book, green book, blue book, orange book",
    "mailbox": "closed mailbox with raised flag, closed mailbox with lowered flag, "
    "open mailbox with raised flag, open mailbox with lowered flag",
    "money": "yen banknote, dollar banknote, euro banknote, pound banknote",
    "folder": "file folder, open file folder",
    "calendar": "calendar, tear-off calendar",
    "ruler": "straight ruler",
    "trash can": "wastebasket",
    "lock": "locked, unlocked",
    "key": "key, old key",
    "saw": "carpentry saw",
    "scale": "balance scale",
    "swords": "crossed swords",
    "bandage": "adhesive bandage",
    "toilet paper": "roll of paper",
    "couch": "couch and lamp",
    "blood drop": "drop of blood",
    "antenna": "satellite antenna",
    "clown": "clown face",
    "alien": "alien",
    "heart": "red heart, heart suit",
    "eye": "eye",
    "wheat": "sheaf of rice",
    "nest": "nest with eggs, empty nest",
    "cricket insect": "cricket",
}
"""Name -> the Unicode labels it stands for; every other label of up to two words is its own name."""

DROPPED_LABELS = {
    label.strip()
    for label in """
    guide dog, service dog, poodle, black cat, ox, water buffalo, ram, rat, pig nose, paw prints, dodo, feather, wing,
    black bird, phoenix, worm, microbe, mammoth, rosette, wilted flower, white flower, lotus, hyacinth, herb,
    leafless tree, brown mushroom, root vegetable, leafy green, ginger root, pea pod, stuffed flatbread, flatbread,
    tamale, fondue, canned food, oden, rice cracker, fish cake with swirl, moon cake, dango, takeout box, teapot,
    sake, clinking glasses, tumbler glass, pouring liquid, beverage box, mate, amphora, world map, landslide,
    national park, classical building, building construction, wood, hut, houses, derelict house, office building,
    department store, convenience store, love hotel, hotel, school, bank, wedding, Tokyo tower, Japanese castle,
    hindu temple, synagogue, shinto shrine, kaaba, foggy, night with stars, cityscape, sunrise, sunset, hot springs,
    barber pole, railway car, metro, light rail, station, tram, monorail, mountain railway, tram car, trolleybus,
    minibus, pickup truck, auto rickshaw, motorway, railway track, construction, motor boat, ferry, small airplane,
    airplane departure, airplane arrival, seat, suspension railway, timer clock, mantelpiece clock, new moon,
    full moon, milky way, comet, fog, wind face, cyclone, tanabata tree, pine decoration, Japanese dolls,
    carp streamer, wind chime, moon viewing ceremony, red envelope, reminder ribbon, admission tickets,
    military medal, softball, flying disc, cricket game, field hockey, lacrosse, goal net, running shirt,
    water pistol, slot machine, piñata, mirror ball, spade suit, diamond suit, club suit, joker, knot, goggles,
    lab coat, safety vest, sari, briefs, woman’s clothes, purse, clutch bag, shopping bags, hiking boot, flat shoe,
    ballet shoes, hair pick, military helmet, prayer beads, muted speaker, musical score, musical notes, level slider,
    control knobs, long drum, pager, fax machine, low battery, trackball, computer disk, film frames, camera with flash,
    video camera, diya lamp, notebook, ledger, page with curl, page facing up, rolled-up newspaper, bookmark tabs,
    label, e-mail, incoming envelope, envelope with arrow, outbox tray, inbox tray, ballot box with ballot, black nib,
    fountain pen, card index, spiral notepad, spiral calendar, chart increasing, chart decreasing, round pushpin,
    linked paperclips, triangular ruler, card file box, locked with pen, locked with key, hammer and pick,
    hammer and wrench, white cane, link, broken chain, petri dish, x-ray, funeral urn, nazar amulet, hamsa, moai,
    placard, identification card, elevator, mouse trap, lotion bottle, bubbles, other-object, loudspeaker, postal horn,
    bellhop bell, telephone receiver, bow and arrow, jar, ice, salt, heart decoration, lab coat, one-piece swimsuit,
    studio microphone, cigarette, crutch, plunger, kimono, rock, clamp, hook, mosque, stop sign, bus stop
    """.split(",")
}
"""Look-alikes of another name, or nothing a person would ask about."""

EXTRA_LABELS = {"ghost", "robot", "alien", "clown face", "skull", "red heart", "brain", "tooth", "bone", "eye", "ear", "nose"}
"""Labels from the people and smiley groups that are things."""

THING_GROUPS = {3, 4, 5, 6, 7}
"""Unicode groups: animals and nature, food and drink, travel and places, activities, objects."""

SUBGROUP_KIND = {
    "plant-flower": "plant",
    "plant-other": "plant",
    "food-fruit": "food",
    "food-vegetable": "food",
    "food-prepared": "food",
    "food-asian": "food",
    "food-sweet": "food",
    "drink": "drink",
    "musical-instrument": "instrument",
    "clothing": "clothing",
    "transport-ground": "vehicle",
    "transport-water": "vehicle",
    "transport-air": "vehicle",
}

KIND_OF_NAME = {
    "shell": "other", "coral": "other", "spider web": "other", "nest": "other", "peacock": "animal", "baby bottle": "other",
    "wheel": "other", "skateboard": "other", "roller skate": "other", "oil drum": "other", "gas pump": "other",
    "siren": "other", "traffic light": "other", "anchor": "other", "life ring": "other", "parachute": "other",
    "satellite": "other", "wheelchair": "other", "crown": "other", "ring": "other", "gem": "other", "lipstick": "other",
    "backpack": "other", "handbag": "other", "glasses": "other", "sunglasses": "other", "fan": "other",
    "beach umbrella": "other", "crab": "animal", "lobster": "animal", "oyster": "other", "wheat": "plant",
}  # fmt: skip

UNCLEAR = {
    "animal": {"shell", "coral", "oyster", "nest", "spider web", "teddy bear", "dinosaur", "dragon", "unicorn", "alien", "chicken leg",
               "T-Rex", "carousel horse", "fried egg", "shrimp"},
    "plant": {"wheat", "nest", "mushroom", "Christmas tree", "bouquet", "coral", "pumpkin"},
    "food": {"crab", "lobster", "shrimp", "squid", "oyster", "fish", "wheat", "mushroom", "nest", "chestnut", "baby bottle",
             "turkey", "chicken", "pumpkin", "clover"},
}  # fmt: skip
"""Names for which "is this a ...?" has no plain answer: that question is not asked of them. Fruit
and vegetables are not asked whether they are plants, nor drinks whether they are food."""


@dataclass(frozen=True)
class Name:
    """One thing: what it is called, of what kind it is, and the Unicode labels drawn for it."""

    text: str
    kind: str
    labels: tuple[str, ...]

    def is_a(self, category: str) -> bool | None:
        """Whether this is an "animal", "plant" or "food"; None where that has no plain answer."""
        if self.text in UNCLEAR[category]:
            return None
        if category == "plant" and self.kind == "food" or category == "food" and self.kind == "drink":
            return None
        return self.kind == category


@dataclass(frozen=True)
class Drawing:
    """One drawing of a name in one style; `source` is an icon name, or a file for the 3D style."""

    name: str
    style: str
    source: str

    @property
    def file(self) -> str:
        """Where its rendering lies below the drawings directory."""
        return f"{self.style}/{Path(self.source).stem}.png"


def article(name: str) -> str:
    """The name with its article, as answers give it: "a dog", "an owl", "fries", "the sun"."""
    if name in {"sun", "moon"}:
        return f"the {name}"
    if name in NO_ARTICLE:
        return name
    return f"an {name}" if name[0] in "aeiou" else f"a {name}"


NO_ARTICLE = set(
    "fries, grapes, cherries, blueberries, beans, peanuts, olives, masks, swords, headphones, glasses, sunglasses, "
    "jeans, gloves, socks, shorts, scissors, skis, maracas, dice, chopsticks, pancakes, meat, bread, bacon, butter, "
    "garlic, broccoli, rice, curry, soup, spaghetti, sushi, popcorn, salad, chocolate, candy, pudding, honey, milk, "
    "coffee, tea, beer, wine, champagne, soda, bubble tea, cheese, corn, money, lightning, fire, fireworks, yarn, "
    "thread, soap, toilet paper, wheat, ice hockey, badminton, ping pong, bowling, chains, sparkles, books, ice cream, "
    "falafel, coral".split(", ")
)


def _key(text: str) -> str:
    """Lower-case letters and digits only, without a variant's number."""
    text = re.sub(r"-\d$", "", text.lower().replace("’", ""))
    return re.sub(r"[^a-z0-9]", "", text)


ALIASES = {
    "ewe": ("sheep",), "hamster": ("hamsterface", "hampster"), "panda": ("pandaface",), "bear": ("bearface",),
    "fox": ("foxface",), "lion": ("lionface",), "wolf": ("wolfface",), "frog": ("frogface",), "unicorn": ("unicornface",),
    "robot": ("robotface",), "koala": ("koalaface",), "rabbit face": ("bunny", "bunnyface"), "cow face": ("cowface",),
    "dog": ("dogside",), "dog face": ("dog2face",), "cat": ("catside",), "pig": ("pigside",), "tiger": ("tigerside",),
    "mouse": ("mouseside",), "leopard": ("leopardside",), "camel": ("dromedarycamel",), "two-hump camel": ("bactriancamel",),
    "front-facing baby chick": ("frontfacingchick",), "spouting whale": ("spurtingwhale",), "bug": ("caterpillar",),
    "lady beetle": ("ladybeetle", "ladybug"), "dove": ("doveofpeace",), "high-heeled shoe": ("heels",),
    "ear of corn": ("earofmaize",), "sheaf of rice": ("earofrice",), "hot pepper": ("chilipepper",), "eggplant": ("aubergine",),
    "cooking": ("bunnyside",), "curry rice": ("curryandrice",), "pizza": ("sliceofpizza",), "cup with straw": ("beveragewithstraw",),
    "fork and knife with plate": ("forkknife",), "fork and knife": ("forkandknife",), "kitchen knife": ("hocho",),
    "backpack": ("schoolsatchel", "schoolbackpack"), "evergreen tree": ("evergreen",), "leaf fluttering in wind": ("leaffluttering",),
    "house": ("housebuilding",), "castle": ("europeancastle",), "high-speed train": ("highspeedtrain",),
    "bullet train": ("highspeedtrainbulletnose",), "locomotive": ("steamlocomotive",), "racing car": ("racecar",),
    "fuel pump": ("fuelpump",), "police car light": ("policecarsrevolvinglight",), "satellite antenna": ("satelliteantenna",),
    "hourglass not done": ("hourglassflowingsand",), "high voltage": ("voltage",), "snowman": ("snowmanwithsnow",),
    "wrapped gift": ("present",), "baseball": ("baseball",), "soccer ball": ("soccerball",), "basketball": ("basketballandhoop",),
    "tennis": ("tennisball", "tennisracquetandball"), "game die": ("gamedie", "dice", "gamedice"), "pool 8 ball": ("billiards",), "bullseye": ("directhit",),
    "performing arts": ("performingarts",), "framed picture": ("framewithpicture",), "sunglasses": ("darksunglasses",),
    "necktie": ("tie",), "t-shirt": ("mansshirt", "tshirt"), "man’s shoe": ("mensshoe", "mansshoe"), "running shoe": ("mensrunner",),
    "woman’s sandal": ("sandals",), "woman’s boot": ("boot",), "woman’s hat": ("womanshat",), "gem stone": ("gem",),
    "speaker high volume": ("speaker3soundwaves",), "mobile phone": ("cellphone",), "telephone": ("blacktelephone",),
    "desktop computer": ("desktopcomputer", "personalcomputer"), "computer mouse": ("threebuttonmouse", "twobuttonmouse"),
    "optical disk": ("opticaldisc",), "flashlight": ("electrictorch",), "red paper lantern": ("izakayalantern",),
    "closed book": ("closedbook",), "light bulb": ("lightbulb",), "magnifying glass tilted left": ("leftmagnifyingglass",),
    "magnifying glass tilted right": ("rightmagnifyingglass",), "dollar banknote": ("banknotedollar",), "yen banknote": ("banknoteyen",),
    "euro banknote": ("banknoteeuro",), "pound banknote": ("banknotepound",), "calendar": ("calendar",), "pushpin": ("blackpushpin",),
    "scissors": ("blackscissors",), "crossed swords": ("crossedswords",), "bow and arrow": ("bowarrow",), "locked": ("lock",),
    "unlocked": ("openlock",), "key": ("key",), "old key": ("oldkey",), "dagger": ("daggerknife",), "balance scale": ("scales",),
    "red heart": ("redheart", "heart"), "moai": ("moyai",), "sun": ("sunrays",), "star": ("whitemediumstar",), "droplet": ("blackdroplet",),
    "tangerine": ("tangerine",), "hot beverage": ("hotbeverage",), "shrimp": ("shrimp",), "fishing pole": ("fishingpoleandfish",),
    "ring": ("ring",), "laptop": ("laptopcomputer",), "trophy": ("trophy",), "video game": ("videogame",), "bouquet": ("bouquet",),
    "maple leaf": ("mapleleaf",), "deciduous tree": ("deciduoustree",), "headphone": ("headphones",), "jeans": ("jeans",),
    "joystick": ("joystick",), "electric plug": ("electricplug",), "bathtub": ("bathtub",), "wastebasket": ("wastebasket",),
}  # fmt: skip
"""What fxemoji, emojione and streamline call a label, where it is not the label itself."""

FACE_SETS = {"fxemoji"}
"""Sets in which a plain animal's name is its face, and "-side" the whole animal."""


def read_labels(packages: Path) -> list[dict]:
    """Unicode's emoji with label, hexcode, group and subgroup name, without the smileys and people that are no things."""
    base = packages / "emojibase-data"
    subgroups = json.loads((base / "meta/groups.json").read_text())["subgroups"]
    kept = []
    for entry in json.loads((base / "en/data.json").read_text()):
        if entry.get("group") in THING_GROUPS or entry["label"] in EXTRA_LABELS:
            kept.append({**entry, "subgroup": subgroups[str(entry["subgroup"])]})
    return kept


def _kind(name: str, subgroup: str) -> str:
    if name in KIND_OF_NAME:
        return KIND_OF_NAME[name]
    return "animal" if subgroup.startswith("animal-") else SUBGROUP_KIND.get(subgroup, "other")


def candidates(packages: Path) -> list[Name]:
    """Every name that could be used, before looking at how well its drawings can be told apart."""
    labels = {entry["label"]: entry for entry in read_labels(packages)}
    names, merged = [], set()
    for text, listed in MERGED.items():
        members = tuple(label for label in listed.split(", ") if label in labels)
        merged.update(members)
        names.append(Name(text, _kind(text, labels[members[0]]["subgroup"]), members))
    taken = {name.text for name in names}
    for label, entry in labels.items():
        usable = len(label.split()) <= 2 and not label.endswith(("clock", "-thirty", "moon", "moon face"))
        if usable and label not in merged | DROPPED_LABELS | taken:
            names.append(Name(label, _kind(label, entry["subgroup"]), (label,)))
    return sorted(names, key=lambda name: name.text)


def _style_index(packages: Path, style: str) -> dict[str, list[str]]:
    """Squeezed icon name -> icon names of one Iconify set (numbered variants share a key)."""
    icons = json.loads((packages / "@iconify-json" / style / "icons.json").read_text())
    index = defaultdict(list)
    for icon in icons["icons"]:
        index[_key(icon)].append(icon)
    for alias, target in icons.get("aliases", {}).items():
        index[_key(alias)].append(target["parent"])
    return index


def find_drawings(packages: Path, names: list[Name]) -> list[Drawing]:
    """All drawings of `names` in all styles, in a fixed order."""
    hexcodes = {entry["label"]: entry["hexcode"].lower() for entry in read_labels(packages)}
    drawings = []
    for style in ICONIFY_STYLES:
        index = _style_index(packages, style)
        for name in names:
            icons = []
            for label in name.labels:
                icons += next((index[key] for key in _label_keys(label, style) if key in index), [])
            drawings += [Drawing(name.text, style, icon) for icon in sorted(set(icons))[:6]]
    folder = packages / "@lobehub/fluent-emoji-3d/assets"
    for name in names:
        for label in name.labels:
            code = hexcodes[label]
            found = next((c for c in (code, code.replace("-fe0f", ""), f"{code}-fe0f") if (folder / f"{c}.webp").is_file()), None)
            if found:
                drawings.append(Drawing(name.text, "fluent-emoji-3d", f"{found}.webp"))
    return drawings


def _label_keys(label: str, style: str) -> list[str]:
    """Keys to try for a label, most trusted first."""
    plain = _key(label)
    keys = [*ALIASES.get(label, ()), plain]
    if plain.endswith("face"):
        keys.append(plain.removesuffix("face") if style in FACE_SETS else plain)
    else:
        keys.append(plain + "face")
    return keys
