"""Generated key-value documents in English, and questions about them in the form of FDA and SWDE.

A document states facts about one entity (a company, a product, a person or a place): attributes with values, in one of
many wordings each, between filler sentences and facts about rivals. It is a pure function of (split, seed, index, shape).
A sentence names the key right before its value, so that a reader with a question in mind knows which value to remember.

The training and evaluation splits share their words but no fact. A hash assigns an eighth of all triples (entity,
attribute, value) to evaluation, and each split draws only from its own. So a model that answers about an evaluation
document has read the answer there.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from random import Random
from typing import Literal
from zlib import crc32

from jrt_eval.data import vocabulary as v

Split = Literal["train", "evaluation"]

# Domain -> key -> generator of values. Keys are capitalised everywhere, as in questions.
ATTRIBUTES: dict[str, dict[str, v.Value]] = {
    "company": {
        "Headquarters": v.city,
        "Chief executive": v.person,
        "Founder": v.person,
        "Chairman": v.person,
        "Auditor": v.coined,
        "Founding year": v.year,
        "Workforce": v.number(210, 9900),
        "Revenue": v.millions,
        "Net profit": v.millions,
        "Total debt": v.millions,
        "Main market": v.country,
        "Ticker": v.code,
        "Largest shareholder": v.coined,
        "Line of business": v.field,
        "Logo": v.thing,
        "House colour": v.colour,
        "Factory site": v.city,
        "Research site": v.city,
        "Latest acquisition": v.coined,
        "Biggest customer": v.coined,
        "Filing date": v.day,
        "Dividend": v.number(11, 98, "{} cents"),
        "Tax rate": v.percent,
        "Main product": v.one_of(v.PRODUCT_KINDS),
        "Raw material": v.material,
        "Export country": v.country,
        "Legal counsel": v.surname,
        "Registered number": v.number(10000, 99999),
    },
    "product": {
        "Brand": v.coined,
        "Model number": v.code,
        "Price": v.number(19, 990, "{} euros"),
        "Weight": v.number(110, 990, "{} grams"),
        "Height": v.number(11, 99, "{} cm"),
        "Width": v.number(11, 99, "{} cm"),
        "Power": v.number(110, 990, "{} watts"),
        "Colour": v.colour,
        "Material": v.material,
        "Handle": v.material,
        "Origin": v.country,
        "Warehouse": v.city,
        "Designer": v.person,
        "Release date": v.day,
        "Warranty": v.number(11, 99, "{} months"),
        "Battery": v.number(11, 99, "{} hours"),
        "Capacity": v.number(110, 990, "{} millilitres"),
        "Noise level": v.number(21, 89, "{} decibels"),
        "Customer score": v.percent,
        "Review count": v.number(110, 9900),
        "Article code": v.number(10000, 99999),
        "Importer": v.coined,
        "Series": v.thing,
        "Pattern": v.thing,
        "Intended use": v.field,
        "Stock": v.number(11, 990, "{} units"),
        "Service point": v.city,
        "Tester": v.surname,
    },
    "person": {
        "Birthplace": v.city,
        "Birthday": v.day,
        "Birth year": v.year,
        "Home town": v.city,
        "Nationality": v.country,
        "Profession": v.field,
        "Hobby": v.field,
        "Spouse": v.person,
        "Teacher": v.person,
        "Mother": v.person,
        "Father": v.person,
        "First book": v.thing,
        "Best known work": v.thing,
        "Employer": v.coined,
        "University": v.city,
        "Field of study": v.field,
        "Prize": v.coined,
        "Prize year": v.year,
        "Favourite colour": v.colour,
        "Pet": v.thing,
        "Residence": v.country,
        "Publisher": v.coined,
        "Height": v.number(151, 199, "{} cm"),
        "Manager": v.surname,
        "Collection": v.thing,
        "Passport number": v.number(10000, 99999),
        "Annual income": v.number(12, 990, "{} thousand dollars"),
        "Sculpture": v.material,
    },
    "place": {
        "Mayor": v.person,
        "Population": v.number(1100, 99000),
        "Area": v.number(110, 9900, "{} hectares"),
        "Elevation": v.number(110, 2900, "{} metres"),
        "Country": v.country,
        "Twin town": v.city,
        "Nearest airport": v.city,
        "Founding year": v.year,
        "Founder": v.person,
        "River": v.coined,
        "Mountain": v.coined,
        "Festival": v.day,
        "Market day": v.day,
        "Coat of arms": v.thing,
        "Flag colour": v.colour,
        "Main industry": v.field,
        "Local sport": v.field,
        "Town hall": v.material,
        "Oldest bridge": v.material,
        "Bridge length": v.number(110, 990, "{} metres"),
        "Postal code": v.number(10000, 99999),
        "Area code": v.number(110, 990),
        "Newspaper": v.coined,
        "Largest employer": v.coined,
        "Patron": v.one_of(v.FIRST_NAMES),
        "Famous resident": v.person,
        "Rainy days": v.number(21, 199),
        "Budget": v.millions,
    },
}
DOMAINS = tuple(ATTRIBUTES)
_TRIES = 100

# A fact consists of one of these beginnings, the key, one of these verbs, and the value.
BEGINNINGS = (
    "The",
    "Its",
    "Here the",
    "Today the",
    "In short, the",
    "As before, the",
    "By all accounts, the",
    "According to our records, the",
)
VERBS = ("is", "is", "was", "remains", "reads")
RIVAL = "For {r} the {k} {verb} {v}."
OPENING = {
    "company": ("{s} files this annual report.", "Annual report of {s}.", "This filing describes the business of {s}."),
    "product": ("{s}: all you need to know.", "Product page: {s}.", "Meet the {s}, new in our shop."),
    "person": ("{s} is the subject of this article.", "A short life of {s}.", "Who is {s}?"),
    "place": ("{s} is worth a visit.", "A guide to {s}.", "All about {s}."),
}


@dataclass(frozen=True)
class DocumentShape:
    """How long and how dense a document is.

    facts: the fewest and most facts about the entity; each domain has 28 attributes.
    filler, rival: the largest chance that a fact is followed by a filler sentence, or by the same fact about each of two
        rivals. Each document draws its own chances, and most are small.
    """

    facts: tuple[int, int] = (6, 28)
    filler: float = 0.4
    rival: float = 0.2


@dataclass(frozen=True)
class Sentence:
    """One sentence, with its full stop. key: the key whose value it states; rival: whether the value is a rival's."""

    text: str
    key: str | None = None
    rival: bool = False


@dataclass(frozen=True)
class Document:
    """One document. `facts` maps each key to its value, in the order of the text; `separator` joins the `sentences`."""

    doc_id: str
    domain: str
    entity: str
    facts: dict[str, str]
    sentences: tuple[Sentence, ...]
    separator: str = " "

    @property
    def text(self) -> str:
        return self.separator.join(sentence.text for sentence in self.sentences)


def belongs_to(split: Split, entity: str, key: str, value: str) -> bool:
    """Whether a document of `split` may state this triple; one in eight belongs to evaluation."""
    held_out = crc32(f"{entity}|{key}|{value}".encode()) % 8 == 0
    return held_out == (split == "evaluation")


def make_document(split: Split, seed: int, index: int, shape: DocumentShape = DocumentShape()) -> Document:
    """Document number `index` of the endless stream `(split, seed)`."""
    rng = Random(f"{split}/{seed}/{index}")
    domain = DOMAINS[int(rng.random() * len(DOMAINS))]
    entity = _entity(domain, rng)
    rivals = [_entity(domain, rng) for _ in range(2)]
    attributes = ATTRIBUTES[domain]
    low, high = shape.facts
    keys = rng.sample(list(attributes), min(len(attributes), low + int(rng.random() * (high - low + 1))))
    filler = list(v.FILLER[domain])
    rng.shuffle(filler)

    filler_chance, rival_chance = shape.filler * rng.random() ** 2, shape.rival * rng.random() ** 2
    separator = "\n" if rng.random() < 0.2 else " "  # some documents have one sentence per line
    sentences = [Sentence(_one(OPENING[domain], rng).format(s=entity))]
    facts = {}
    for key in keys:
        make = attributes[key]
        value = next((x for x in (make(rng) for _ in range(_TRIES)) if belongs_to(split, entity, key, x)), None)
        if value is None:  # no value in a small pool belongs to this split for this entity
            continue
        facts[key] = value
        sentences.append(Sentence(f"{_one(BEGINNINGS, rng)} {key} {_one(VERBS, rng)} {value}.", key))
        for rival in rivals:
            if rng.random() < rival_chance:
                text = RIVAL.format(k=key, verb=_one(VERBS, rng), v=make(rng), r=rival)
                sentences.append(Sentence(text, key, rival=True))
        while filler and rng.random() < filler_chance:
            sentences.append(Sentence(filler.pop()))
    return Document(f"{split}-{seed}-{index}", domain, entity, facts, tuple(sentences), separator)


def _one(pool: tuple[str, ...], rng: Random) -> str:
    return pool[int(rng.random() * len(pool))]


def _entity(domain: str, rng: Random) -> str:
    if domain == "company":
        return f"{v.coined(rng)} {_one(v.COMPANY_ENDINGS, rng)}"
    if domain == "product":
        return f"{v.coined(rng)} {_one(v.PRODUCT_KINDS, rng)}"
    if domain == "person":
        return v.person(rng)
    return f"{v.coined(rng)} {_one(v.PLACE_KINDS, rng)}"


def prompt(text: str, key: str, *, asked: bool = False, readings: int = 1) -> str:
    """A prompt in the form of FDA for one key, up to and including `Key:`. asked: the question also comes first.

    The read-once prompt has one reading; the read-twice prompt is asked and has two. An asked prompt with one reading is
    used only in training, where it teaches a model to read with the question in mind.
    """
    passage = text.strip("\n").strip(".") + "."
    readings_of_it = "\n".join([passage] * readings)
    return f"{_in_front(key)} {readings_of_it} {_question(key)}" if asked else f"{readings_of_it} {_question(key)}"


def _question(key: str) -> str:
    return f"{key[0].upper()}{key[1:]}:"


def _in_front(key: str) -> str:
    return f"Information about {_question(key).removesuffix(':')}."


def training_text(document: Document, rng: Random, head: str, questions: int) -> tuple[str, list[tuple[str, str]]]:
    """A prompt about one fact, and up to `questions` pairs (text before the answer, answer) that follow it.

    head: once, asked (the question, then the document once) or twice. The text of the first pair is empty, since the
    prompt ends where its answer begins. asked and twice prompts name their key in advance, so more questions than one
    make sense only for once.
    """
    keys = rng.sample(list(document.facts), min(questions, len(document.facts)))
    pairs = [("" if i == 0 else f" {_question(key)}", f" {document.facts[key]}\n") for i, key in enumerate(keys)]
    start = prompt(document.text, keys[0], asked=head != "once", readings=2 if head == "twice" else 1)
    return start, pairs


def marked_text(document: Document, rng: Random, *, answered: bool = False) -> list[tuple[str, int]]:
    """A question and then the document once, as parts of the text with loss weights (0: no loss).

    The loss covers the end of every sentence that states a key and its value: "!" for the requested fact, "." for the
    others and for rivals' facts. To predict it, a model has to have the question in mind when it reads the value. The "!"
    has the weight of all "." together. answered: the usual question and answer follow, with about the same weight.
    """
    asked = rng.choice(list(document.facts))
    others = sum(sentence.key is not None for sentence in document.sentences) - 1
    parts, plain = [], _in_front(asked)
    for number, sentence in enumerate(document.sentences):
        plain += (document.separator if number else " ") + sentence.text
        if sentence.key is not None:
            mine = sentence.key == asked and not sentence.rival
            parts += [(plain.removesuffix("."), 0), ("!" if mine else ".", max(others, 1) if mine else 1)]
            plain = ""
    if answered:
        weight = max(others // 4, 1)  # an answer has about four tokens
        parts += [(f"{plain} {_question(asked)}", 0), (f" {document.facts[asked]}\n", weight)]
    return parts


# Documents of the task jrt_mini: all 28 facts of a domain, many followed by a rival's, about 370 tokens.
EVALUATION_SHAPE = DocumentShape(facts=(28, 28), filler=0.3, rival=0.2)


def evaluation_rows(documents: int, seed: int = 1, shape: DocumentShape = EVALUATION_SHAPE) -> Iterator[dict[str, str]]:
    """Rows with the columns of based-fda (doc_id, file_name, key, value, text); one question per document."""
    for index in range(documents):
        document = make_document("evaluation", seed, index, shape)
        key = Random(f"question/{seed}/{index}").choice(list(document.facts))
        yield {
            "doc_id": document.doc_id,
            "file_name": f"{document.domain}/{index}.txt",
            "key": key,
            "value": document.facts[key],
            "text": document.text,
        }
