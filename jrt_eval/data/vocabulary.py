"""Word lists of the generated documents, and generators of attribute values."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

Value = Callable[[Random], str]


def _split(words: str) -> tuple[str, ...]:
    return tuple(words.split())


FIRST_NAMES = _split(
    "Ada Alma Amir Anders Anita Anton Astrid Bela Bruno Carla Cedric Chiara Clara Dalia Daniel David Dora Edith Elena "
    "Elias Emil Emma Erik Esther Eva Farid Felix Fiona Frank Gemma George Greta Hana Hans Harriet Hassan Helen Henry "
    "Hugo Ida Igor Ines Irene Isaac Ivan Jana Jonas Julia Karim Karl Kate Kenji Kiran Lara Laura Leon Lin Louis Lucy "
    "Magda Marco Maria Martin Maya Mei Mina Miriam Nadia Naomi Nils Nina Nora Olga Oscar Otto Pablo Paula Peter Petra "
    "Priya Rafael Ravi Rosa Ruth Samir Sara Sofia Stefan Tara Teresa Thomas Tomas Umar Vera Victor Wanda Yara Yuri Zoe"
)
LAST_NAMES = _split(
    "Abbott Adler Albers Almeida Arnold Bauer Becker Benson Berger Bianchi Blake Brandt Bright Brooks Carter Castro "
    "Chandra Cohen Conti Costa Crane Cruz Dahl Dalton Delgado Dixon Doyle Drake Duarte Eklund Ellis Engel Farrell Fischer "
    "Fleming Flores Foster Fuchs Garcia Gibson Grant Greene Gupta Haas Hale Hansen Harper Hartmann Hayes Herrera Hoffman "
    "Holm Hughes Ibrahim Ivanov Jansen Jensen Kaplan Keller Khan Kim Klein Kovacs Kramer Kumar Lang Larsen Laurent Lehmann "
    "Levin Lindgren Lopez Lorenz Mancini Marsh Martel Mehta Meyer Miller Molina Moreau Morgan Moss Murphy Nagy Nash Neumann "
    "Nielsen Novak Ortega Osman Palmer Park Patel Pereira Petrov Pierce Popov Quinn Ramos Reed Reyes Ricci Rossi Roth "
    "Sanders Santos Sato Schmidt Schultz Sharma Shaw Silva Singh Sousa Stein Stone Suzuki Tanaka Torres Tran Turner Vargas "
    "Vogel Wagner Walsh Weber Weiss West Wolf Wong Wright Yamada Young Zeller Zhang"
)
CITIES = _split(
    "Aarhus Accra Adelaide Amman Ankara Antwerp Athens Atlanta Austin Baku Bangkok Basel Beirut Belfast Bergen Berlin Bern "
    "Bilbao Bogota Bologna Bonn Boston Bremen Brisbane Bristol Brussels Budapest Cairo Calgary Canberra Cardiff Chennai "
    "Chicago Cologne Copenhagen Cork Dakar Dallas Darwin Delft Denver Detroit Dhaka Doha Dresden Dublin Durban Edinburgh "
    "Essen Florence Geneva Genoa Ghent Glasgow Graz Hamburg Hanoi Havana Helsinki Houston Istanbul Jakarta Karachi Kiel "
    "Kobe Krakow Kyoto Lagos Leeds Leipzig Lima Linz Lisbon Liverpool Ljubljana London Lyon Madrid Malaga Manila Marseille "
    "Melbourne Memphis Miami Milan Minsk Mombasa Montreal Mumbai Munich Nagoya Nairobi Nantes Naples Nice Osaka Oslo "
    "Ottawa Oxford Palermo Paris Perth Phoenix Porto Prague Quito Reykjavik Riga Rome Rotterdam Santiago Seattle Seoul "
    "Seville Shanghai Singapore Sofia Split Stockholm Stuttgart Sydney Taipei Tallinn Tampere Tokyo Toronto Toulouse "
    "Trieste Tunis Turin Utrecht Valencia Vancouver Venice Verona Vienna Vilnius Warsaw Wellington York Zagreb Zurich"
)
COUNTRIES = _split(
    "Albania Algeria Angola Argentina Armenia Australia Austria Bahrain Belgium Bolivia Botswana Brazil Bulgaria Cambodia "
    "Cameroon Canada Chile China Colombia Croatia Cuba Cyprus Denmark Ecuador Egypt Estonia Ethiopia Fiji Finland France "
    "Georgia Germany Ghana Greece Guatemala Hungary Iceland India Indonesia Iran Iraq Ireland Israel Italy Jamaica Japan "
    "Jordan Kenya Kuwait Laos Latvia Lebanon Libya Lithuania Malaysia Malta Mexico Moldova Mongolia Morocco Namibia Nepal "
    "Netherlands Nigeria Norway Oman Pakistan Panama Paraguay Peru Poland Portugal Qatar Romania Rwanda Senegal Serbia "
    "Slovakia Slovenia Somalia Spain Sudan Sweden Switzerland Syria Tanzania Thailand Tunisia Turkey Uganda Ukraine Uruguay "
    "Venezuela Vietnam Yemen Zambia Zimbabwe"
)
COLOURS = _split(
    "amber aqua azure beige black blue bronze brown burgundy charcoal copper coral cream crimson cyan emerald fuchsia gold "
    "graphite gray green indigo ivory jade khaki lavender lilac lime magenta maroon mauve mint navy ochre olive orange peach "
    "pearl pink plum purple red rose ruby rust saffron sand sapphire scarlet silver tan teal turquoise violet white yellow"
)
MATERIALS = _split(
    "acrylic alder aluminium ash bamboo basalt birch brass bronze canvas carbon cashmere cedar ceramic chrome clay copper "
    "cork cotton denim ebony felt fleece glass granite hemp iron jute latex leather linen mahogany maple marble mesh nickel "
    "nylon oak paper pewter pine plastic polyester porcelain resin rubber satin silicone silk slate steel suede teak "
    "titanium vinyl walnut wax wicker wood wool zinc"
)
THINGS = _split(
    "anvil apple arch arrow badger banner barley basket beacon bear beaver bell birch boat book bridge bucket butterfly "
    "button camel candle castle cedar chair cherry clock clover comet compass crane crown deer dolphin door dragon drum duck "
    "eagle elephant falcon feather fern fig flag flute fox garden gate goat grape hammer harbor harp hawk heron hill horn "
    "horse iris island ivy jaguar kettle key kite ladder lamp lantern leaf lemon lily lion lotus lynx mango maple mask mill "
    "mirror moon mountain needle nest oak olive onion orchid otter owl paddle palm panda panther pear pebble pelican pigeon "
    "plum poppy pumpkin rabbit raven reed ribbon river robin rocket rope rose saddle sail salmon seal shell shield ship "
    "sparrow spider star stork sun swan sword tiger tower tulip turtle vase violin walnut whale wheat wheel willow wolf zebra"
)
FIELDS = _split(
    "accounting acoustics agriculture algebra anatomy archery architecture astronomy banking baking ballet biology botany "
    "boxing carpentry ceramics chemistry chess climbing commerce cooking cricket cycling dance dentistry design diplomacy "
    "drama ecology economics education electronics energy engineering fashion fencing finance fishing forestry gardening "
    "genetics geology geometry golf history hockey hunting insurance journalism judo karate law linguistics logic logistics "
    "marketing medicine mining music nursing optics painting pharmacy philosophy photography physics poetry politics pottery "
    "printing psychology publishing robotics rowing rugby sailing sculpture shipping skating skiing sociology statistics "
    "surfing surgery swimming tailoring tennis theology tourism trade translation weaving welding wrestling zoology"
)
PREFIXES = _split(
    "Al Ar Bel Bor Bran Cal Cor Dal Del Dor El Fal Fen Gal Gor Hal Har Ist Jor Kal Kel Lan Lor Mal Mar Mor Nal Nor Ol Or Pel "
    "Por Quel Ral Ren Sal Sor Tal Tor Ul Val Var Vel Wal Wen Yor Zal Zen"
)
SUFFIXES = _split(
    "aden ala and ane ara aric as avia den dine don dor ea eda el ena era eth eva holm ia ian ica ide iel ima ine ion ira is "
    "ita ium ix olis on ona or ora os ova um una ura us vale wick wyn"
)
COMPANY_ENDINGS = _split(
    "Bank Energy Foods Group Holdings Industries Labs Logistics Media Mining Motors Partners Pharma Systems"
)
PRODUCT_KINDS = _split(
    "backpack bicycle blender boiler camera chair clock cooker desk drill fan fridge guitar headset heater jacket kettle "
    "keyboard lamp laptop monitor mower oven phone piano printer projector radio scooter speaker tablet telescope tent toaster "
    "watch"
)
PLACE_KINDS = _split("borough city county district harbour town valley village")
MONTHS = _split("January February March April May June July August September October November December")

FILLER = {
    "company": (
        "The directors met several times during the year and reviewed the plans of the group.",
        "No events after the balance sheet date need to be reported here.",
        "Management considers the outlook stable, although costs rose in some regions.",
        "The accounts were prepared on the assumption that business continues as before.",
        "Shareholders were invited to submit their questions in writing before the meeting.",
        "A summary of the accounting policies can be found in the notes.",
        "Demand was weak in the first half and recovered towards the end of the year.",
        "Several contracts were renewed on terms similar to those of earlier years.",
        "The company does not expect any material change to its business.",
        "Further risks are described in the section on financial instruments.",
        "The report was approved without objections and signed by all members of the board.",
        "Some figures have been rounded and may not add up exactly.",
    ),
    "product": (
        "Please read the manual carefully before first use and keep it in a safe place.",
        "Customers who looked at this item also looked at several others in our shop.",
        "Delivery takes a few days, and returns are free within the usual period.",
        "The picture may differ slightly from the article that you receive.",
        "It is easy to clean and fits into almost every home.",
        "Our service team answers all questions on working days.",
        "Spare parts can be ordered separately at any time.",
        "Not suitable for children without the supervision of an adult.",
        "Many buyers praise the quiet operation and the solid finish.",
        "The box contains everything that is needed to get started.",
        "We test every unit before it leaves our warehouse.",
        "Prices include taxes and may change without notice.",
    ),
    "person": (
        "Friends describe a quiet and patient character with a dry sense of humour.",
        "Little is known about the early years, and few letters survive.",
        "The archive holds a large collection of notes, drafts and photographs.",
        "Critics were divided at first, but the public was enthusiastic.",
        "Much of the work was done late at night after long walks.",
        "A biography appeared some years later and was widely read.",
        "Interviews were rare and usually short.",
        "The family moved several times during those years.",
        "Many students remember the lectures as lively and demanding.",
        "Later life was spent away from the public eye.",
        "Several of the earliest sketches were lost in a fire.",
        "A small museum keeps some of the personal belongings.",
    ),
    "place": (
        "Visitors come mainly in summer, when the days are long and dry.",
        "The old quarter has narrow lanes, small shops and many cafes.",
        "A regular bus service connects the outlying settlements.",
        "Archaeologists have found traces of much earlier settlements nearby.",
        "The climate is mild, with some snow in winter.",
        "Most of the older houses were rebuilt after the great fire.",
        "Walking trails lead through the forest to several viewpoints.",
        "The local council meets in public once a month.",
        "In recent years many young families have moved here.",
        "The surrounding fields are used mainly for fruit and vegetables.",
        "A weekly market is held in front of the old church.",
        "Parking is scarce in the centre, so visitors should use the train.",
    ),
}


def one_of(pool: tuple[str, ...]) -> Value:
    return lambda rng: pool[int(rng.random() * len(pool))]


def number(low: int, high: int, form: str = "{}") -> Value:
    return lambda rng: form.format(int(low + rng.random() * (high - low)))


def person(rng: Random) -> str:
    return f"{one_of(FIRST_NAMES)(rng)} {one_of(LAST_NAMES)(rng)}"


def day(rng: Random) -> str:
    return f"{int(1 + rng.random() * 28)} {one_of(MONTHS)(rng)}"


def code(rng: Random) -> str:
    return f"{'ABCDEFGHKLMNPRSTVXZ'[int(rng.random() * 19)]}{int(100 + rng.random() * 900)}"


def coined(rng: Random) -> str:
    return one_of(PREFIXES)(rng) + one_of(SUFFIXES)(rng)


city, country = one_of(CITIES), one_of(COUNTRIES)
colour, material, thing, field = one_of(COLOURS), one_of(MATERIALS), one_of(THINGS), one_of(FIELDS)
surname = one_of(LAST_NAMES)
year = number(1850, 2025)
percent = number(11, 99, "{} percent")
millions = number(12, 990, "{} million dollars")
