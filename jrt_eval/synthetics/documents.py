"""Procedural key-value documents in English, and questions about them in the form of FDA and SWDE.

A document tells facts about one entity (a company's filing, a product's page, a person's life, a place): attributes
with values, each told in one of several wordings, among filler sentences and facts about a rival. It is a pure
function of `(split, seed, index, shape)`.

Train and evaluation share their words but no fact: the triple (entity, attribute, value) is hashed, an eighth of all
triples belongs to evaluation, and each split draws from its own. So a model that answers about an evaluation document
has read it there.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from random import Random
from typing import Literal
from zlib import crc32

from jrt_eval.synthetics import vocabulary as v

Split = Literal["train", "evaluation"]

# key -> (what its values look like, wordings of its own with {s} the subject and {v} the value)
ATTRIBUTES: dict[str, dict[str, tuple[v.Value, tuple[str, ...]]]] = {
    "company": {
        "headquarters": (v.city, ("{s} is based in {v}.", "The main office of {s} stands in {v}.")),
        "chief executive": (v.person, ("{s} is led by {v} as chief executive.",)),
        "founder": (v.person, ("{v} was the founder of {s}.",)),
        "chairman": (v.person, ("{v} serves as chairman of the board.",)),
        "auditor": (v.coined, ("The books of {s} were checked by its auditor {v}.",)),
        "founding year": (v.year, ("{s} was set up in {v}, its founding year.",)),
        "workforce": (v.number(210, 9900), ("{s} has a workforce of {v}.",)),
        "revenue": (v.millions, ("{s} reported revenue of {v}.",)),
        "net profit": (v.millions, ("A net profit of {v} remained after taxes.",)),
        "total debt": (v.millions, ("Lenders are owed a total debt of {v}.",)),
        "main market": (v.country, ("Most goods are sold in {v}, the main market.",)),
        "ticker": (v.code, ("The shares trade under the ticker {v}.",)),
        "largest shareholder": (v.coined, ("The largest shareholder is still {v}.",)),
        "line of business": (v.field, ("Its line of business has always been {v}.",)),
        "logo": (v.thing, ("The logo shows a {v}.",)),
        "house colour": (v.colour, ("Its vehicles are painted {v}, the house colour.",)),
        "factory site": (v.city, ("The only factory site is in {v}.",)),
        "research site": (v.city, ("New work is done at the research site in {v}.",)),
        "latest acquisition": (v.coined, ("With {v} it made its latest acquisition.",)),
        "biggest customer": (v.coined, ("Its biggest customer is called {v}.",)),
        "filing date": (v.day, ("{v} is the filing date of this report.",)),
        "dividend": (v.number(11, 98, "{} cents"), ("A dividend of {v} per share is proposed.",)),
        "tax rate": (v.percent, ("A tax rate of {v} was applied.",)),
        "main product": (v.one_of(v.PRODUCT_KINDS), ("Its main product is a {v}.",)),
        "raw material": (v.material, ("Its most important raw material is {v}.",)),
        "export country": (v.country, ("Its first export country was {v}.",)),
        "legal counsel": (v.surname, ("Legal counsel {v} advised {s}.",)),
        "registered number": (v.number(10000, 99999), ("{s} is entered under registered number {v}.",)),
    },
    "product": {
        "brand": (v.coined, ("It is sold under the brand {v}.",)),
        "model number": (v.code, ("The model number {v} is printed on the back.",)),
        "price": (v.number(19, 990, "{} euros"), ("It costs {v}, a fair price.",)),
        "weight": (v.number(110, 990, "{} grams"), ("It brings {v} of weight to the scale.",)),
        "height": (v.number(11, 99, "{} cm"), ("It stands {v} in height.",)),
        "width": (v.number(11, 99, "{} cm"), ("It takes {v} of width.",)),
        "power": (v.number(110, 990, "{} watts"), ("It draws {v} of power.",)),
        "colour": (v.colour, ("It comes in {v}, a popular colour.",)),
        "material": (v.material, ("The body is made of {v}, a robust material.",)),
        "handle": (v.material, ("Its handle is made of {v}.",)),
        "origin": (v.country, ("It was made in {v}, its country of origin.",)),
        "warehouse": (v.city, ("It ships from our warehouse in {v}.",)),
        "designer": (v.person, ("{v} is the designer of this model.",)),
        "release date": (v.day, ("It went on sale with a release date of {v}.",)),
        "warranty": (v.number(11, 99, "{} months"), ("A warranty of {v} is included.",)),
        "battery": (v.number(11, 99, "{} hours"), ("Its battery lasts {v}.",)),
        "capacity": (v.number(110, 990, "{} millilitres"), ("It holds a capacity of {v}.",)),
        "noise level": (v.number(21, 89, "{} decibels"), ("Its noise level stays at {v}.",)),
        "customer score": (v.percent, ("Buyers gave it a customer score of {v}.",)),
        "review count": (v.number(110, 9900), ("The review count has reached {v}.",)),
        "article code": (v.number(10000, 99999), ("Order it with article code {v}.",)),
        "importer": (v.coined, ("{v} is the importer for our region.",)),
        "series": (v.thing, ("It belongs to the {v} series.",)),
        "pattern": (v.thing, ("The pattern shows a {v}.",)),
        "intended use": (v.field, ("It was made for {v}, its intended use.",)),
        "stock": (v.number(11, 990, "{} units"), ("We have a stock of {v}.",)),
        "service point": (v.city, ("Repairs are done at the service point in {v}.",)),
        "tester": (v.surname, ("Before sale, {v} was its tester.",)),
    },
    "person": {
        "birthplace": (v.city, ("{s} was born in {v}.", "{v} is the birthplace of {s}.")),
        "birthday": (v.day, ("{s} celebrates a birthday on {v}.",)),
        "birth year": (v.year, ("{s} came into the world in {v}.",)),
        "home town": (v.city, ("{v} became a second home town.",)),
        "nationality": (v.country, ("{s} holds the nationality of {v}.",)),
        "profession": (v.field, ("By profession {s} works in {v}.",)),
        "hobby": (v.field, ("{s} spends free time on {v}, a hobby since childhood.",)),
        "spouse": (v.person, ("{s} married {v}.",)),
        "teacher": (v.person, ("{s} learned from {v}, a teacher of great renown.",)),
        "mother": (v.person, ("{v}, the mother, ran a shop.",)),
        "father": (v.person, ("{v}, the father, was often away.",)),
        "first book": (v.thing, ("The first book was called The {v}.",)),
        "best known work": (v.thing, ("The {v} is the best known work.",)),
        "employer": (v.coined, ("{s} works for the employer {v}.",)),
        "university": (v.city, ("{s} attended the university of {v}.",)),
        "field of study": (v.field, ("{s} took {v} as a field of study.",)),
        "prize": (v.coined, ("{s} was given the {v} prize.",)),
        "prize year": (v.year, ("The honour came in {v}, the prize year.",)),
        "favourite colour": (v.colour, ("{s} always wears {v}, a favourite colour.",)),
        "pet": (v.thing, ("A pet {v} lives in the house.",)),
        "residence": (v.country, ("{s} now has a residence in {v}.",)),
        "publisher": (v.coined, ("{v} is the publisher of the collected works.",)),
        "height": (v.number(151, 199, "{} cm"), ("With a height of {v}, {s} is easy to spot.",)),
        "manager": (v.surname, ("{v} acts as manager.",)),
        "collection": (v.thing, ("{s} owns a collection of every kind of {v}.",)),
        "passport number": (v.number(10000, 99999), ("The passport number is given as {v}.",)),
        "annual income": (v.number(12, 990, "{} thousand dollars"), ("An annual income of {v} was declared.",)),
        "sculpture": (v.material, ("A sculpture in {v} honours {s}.",)),
    },
    "place": {
        "mayor": (v.person, ("{v} was elected mayor.",)),
        "population": (v.number(1100, 99000), ("{s} has a population of {v}.",)),
        "area": (v.number(110, 9900, "{} hectares"), ("{s} covers an area of {v}.",)),
        "elevation": (v.number(110, 2900, "{} metres"), ("{s} lies at an elevation of {v}.",)),
        "country": (v.country, ("{s} belongs to the country of {v}.",)),
        "twin town": (v.city, ("{v} is the twin town of {s}.",)),
        "nearest airport": (v.city, ("Travellers use {v}, the nearest airport.",)),
        "founding year": (v.year, ("{s} was founded in {v}.",)),
        "founder": (v.person, ("{v} is held to be the founder.",)),
        "river": (v.coined, ("The {v} river runs through {s}.",)),
        "mountain": (v.coined, ("The {v} mountain rises behind {s}.",)),
        "festival": (v.day, ("The festival begins on {v}.",)),
        "market day": (v.day, ("The great market day falls on {v}.",)),
        "coat of arms": (v.thing, ("The coat of arms shows a {v}.",)),
        "flag colour": (v.colour, ("The flag colour is {v}.",)),
        "main industry": (v.field, ("Most people live from {v}, the main industry.",)),
        "local sport": (v.field, ("The local sport is {v}.",)),
        "town hall": (v.material, ("The town hall is built of {v}.",)),
        "oldest bridge": (v.material, ("The oldest bridge is made of {v}.",)),
        "bridge length": (v.number(110, 990, "{} metres"), ("The bridge length is {v}.",)),
        "postal code": (v.number(10000, 99999), ("Letters carry the postal code {v}.",)),
        "area code": (v.number(110, 990), ("Callers dial the area code {v}.",)),
        "newspaper": (v.coined, ("The local newspaper is called {v}.",)),
        "largest employer": (v.coined, ("The largest employer is {v}.",)),
        "patron": (v.one_of(v.FIRST_NAMES), ("Saint {v} is the patron of {s}.",)),
        "famous resident": (v.person, ("{v} is a famous resident.",)),
        "rainy days": (v.number(21, 199), ("There are {v} rainy days in a year.",)),
        "budget": (v.millions, ("The yearly budget amounts to {v}.",)),
    },
}
DOMAINS = tuple(ATTRIBUTES)
_TRIES = 100

# Wordings that fit every attribute; {k} is the key, {K} the key with a capital.
GENERIC = (
    "{K}: {v}.",
    "{K}: {v}.",
    "The {k} of {s} is {v}.",
    "The {k} is {v}.",
    "Here the {k} is given as {v}.",
    "According to our records, the {k} is {v}.",
    "Asked for the {k}, sources name {v}.",
    "{v} is the {k} of {s}.",
    "{v} is listed as the {k}.",
)
RIVAL = (
    "The {k} of {r}, by contrast, is {v}.",
    "For {r} the {k} is {v}.",
    "Unlike {s}, {r} names {v} as its {k}.",
)
OPENING = {
    "company": ("{s} files this annual report.", "Annual report of {s}.", "This filing describes the business of {s}."),
    "product": ("{s}: all you need to know.", "Product page: {s}.", "Meet the {s}, new in our shop."),
    "person": ("{s} is the subject of this article.", "A short life of {s}.", "Who is {s}?"),
    "place": ("{s} is worth a visit.", "A guide to {s}.", "All about {s}."),
}


@dataclass(frozen=True)
class Shape:
    """How long and how crowded a document is.

    `facts`: fewest and most facts about the entity (28 attributes are known for each domain). After a fact may stand
    filler sentences, or the value that up to two rivals have there: `filler` and `rival` are the largest chances of that;
    each document draws its own, mostly small ones. With 28 facts and both at 0.6 a document reaches 900 tokens.
    """

    facts: tuple[int, int] = (6, 28)
    filler: float = 0.4
    rival: float = 0.2


@dataclass(frozen=True)
class Document:
    """One document. `facts` maps each key to its value, in the order of the text."""

    doc_id: str
    domain: str
    entity: str
    text: str
    facts: dict[str, str]


def belongs_to(split: Split, entity: str, key: str, value: str) -> bool:
    """Whether this triple may be told by a document of `split`; one in eight is evaluation's."""
    held_out = crc32(f"{entity}|{key}|{value}".encode()) % 8 == 0
    return held_out == (split == "evaluation")


def make_document(split: Split, seed: int, index: int, shape: Shape = Shape()) -> Document:
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
    as_list = rng.random() < 0.2  # a page that is mostly a table, as product pages are
    sentences = [_one(OPENING[domain], rng).format(s=entity)]
    facts = {}
    for key in keys:
        make, wordings = attributes[key]
        value = next((x for x in (make(rng) for _ in range(_TRIES)) if belongs_to(split, entity, key, x)), None)
        if value is None:  # none of a small pool's values is this split's, for this entity
            continue
        facts[key] = value
        if as_list and rng.random() < 0.8:
            wording = GENERIC[0]
        else:
            wording = _one(wordings if rng.random() < 0.4 else GENERIC, rng)
        sentences.append(_tell(wording, key, value, entity))
        for rival in rivals:
            if rng.random() < rival_chance:
                sentences.append(_tell(_one(RIVAL, rng), key, make(rng), entity, rival))
        while filler and rng.random() < filler_chance:
            sentences.append(filler.pop())
    separator = "\n" if as_list else " "
    return Document(f"{split}-{seed}-{index}", domain, entity, separator.join(sentences), facts)


def _one(pool: tuple[str, ...], rng: Random) -> str:
    return pool[int(rng.random() * len(pool))]


def _tell(wording: str, key: str, value: str, entity: str, rival: str = "") -> str:
    text = wording.format(k=key, K=key[0].upper() + key[1:], v=value, s=entity, r=rival)
    return text[0].upper() + text[1:]


def _entity(domain: str, rng: Random) -> str:
    if domain == "company":
        return f"{v.coined(rng)} {_one(v.COMPANY_ENDINGS, rng)}"
    if domain == "product":
        return f"{v.coined(rng)} {_one(v.PRODUCT_KINDS, rng)}"
    if domain == "person":
        return v.person(rng)
    return f"{v.coined(rng)} {_one(v.PLACE_KINDS, rng)}"


def prompt(text: str, key: str, *, twice: bool = False) -> str:
    """The read-once or read-twice prompt of the FDA family for one key, up to and including `Key:`."""
    passage = text.strip("\n").strip(".") + "."
    question = f"{key[0].upper()}{key[1:]}"
    if twice:
        return f"Information about {question}. {passage}\n{passage} {question}:"
    return f"{passage} {question}:"


def training_text(document: Document, rng: Random, *, twice: bool, questions: int) -> tuple[str, list[tuple[str, str]]]:
    """A prompt about one fact, and up to `questions` (text before the answer, answer) pairs that follow it.

    The first pair's text is empty: the prompt ends where its answer begins. A twice prompt names its key in advance,
    so only once prompts profit from more than one question.
    """
    keys = rng.sample(list(document.facts), min(questions, len(document.facts)))
    pairs = [
        ("" if i == 0 else f" {key[0].upper()}{key[1:]}:", f" {document.facts[key]}\n") for i, key in enumerate(keys)
    ]
    return prompt(document.text, keys[0], twice=twice), pairs


# Documents of the task jrt_mini: all 28 facts of a domain, many of them beside a rival's, about 370 tokens.
EVALUATION_SHAPE = Shape(facts=(28, 28), filler=0.4, rival=0.4)


def evaluation_rows(documents: int, seed: int = 1, shape: Shape = EVALUATION_SHAPE) -> Iterator[dict[str, str]]:
    """Rows in the schema of based-fda (`doc_id`, `file_name`, `key`, `value`, `text`), one question per document."""
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
