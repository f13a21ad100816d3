"""Spanish sentences from a grammar of our own: templates with slots that agree in gender and number.

A slot is `{word list}` or `{form noun adjectives}`. Forms: `el`, `un`, `los`, `unos`, `mi`, `este`, `bare` and `num`
(a number as words and the plural). `{el animal animal}` may become "la jirafa tranquila". Templates, words and rules
are written for this package; no sentence was taken from anywhere.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator

from asrkit.errors import DataError
from asrkit.synthetic.vocabulary import ADJECTIVES, NOUNS, WORDS, Noun, number_words, plural

TEMPLATES: tuple[str, ...] = (
    # family, people
    "{mi family} vive en {city}.",
    "{mi family} se llama {name}.",
    "{mi family} trabaja en {el place}.",
    "{el person} es muy {adj person}.",
    "{el person person} trabaja en {un place}.",
    "{name} es {un person person}.",
    "{name} y {name} viven en {city}.",
    "¿Dónde vive {mi family}?",
    "¿Quién es {el person} de {name}?",
    "{mi family} tiene {num animal}.",
    "{mi family} tiene {years} años.",
    "{name} estudia {subject} en {city}.",
    "{name} tiene {feeling}.",
    "Tengo {feeling} y {feeling}.",
    "¡Qué {feeling} tiene {mi family}!",
    "{el person} habla {language} y {language}.",
    # shopping, things
    "¿Cuánto cuesta {este thing}?",
    "{este thing} cuesta {price} euros.",
    "{el clothes thing} cuesta {price} euros.",
    "{name} {wants} {un thing thing}.",
    "{name} {bought} {un clothes thing} {past}.",
    "{past}, {mi family} {bought} {num thing}.",
    "Quiero {verb_inf} {un thing thing}.",
    "¿Quieres {verb_inf} {este clothes}?",
    "Necesito {un thing} y {un thing}.",
    "{el thing} de {name} es muy {adj thing}.",
    "{device} {state}.",
    "¿Por qué {device} {state}?",
    "No encuentro {el thing thing}.",
    "¿De quién es {este thing}?",
    "Hay {num thing} en {el place}.",
    "Faltan {num clothes}.",
    # food and drink
    "{name} {eats} {un food food}.",
    "{mi family} {eats} {num food}.",
    "Quiero {quantity} de {bare food}, por favor.",
    "Póngame {quantity} de {bare food}.",
    "{name} bebe {drink} {when}.",
    "¿Quieres {drink} o {drink}?",
    "No bebo {drink} ni {drink}.",
    "{los food} están {adj food}.",
    "En {el place} venden {bare food} y {bare food}.",
    "Me gustan {los food food}.",
    "¿Te gusta {el food} con {drink}?",
    # animals
    "{el animal animal} duerme en {el place}.",
    "{el animal} bebe {simple_drink} en {el place}.",
    "Vimos {num animal} en {el place}.",
    "{los animal} comen {bare food}.",
    "{un animal animal} cruza {el place}.",
    "¿Has visto {el animal} de {name}?",
    "{el animal} está {prep} {el room}.",
    "{el animal} es más {adj animal} que {el animal}.",
    "{name} sueña con {unos animal animal}.",
    # weather, time, dates
    "En {city} {weather}.",
    "{season} {weather} en {city}.",
    "¿Qué tiempo hace en {city}?",
    "Hoy {weather} y mañana también.",
    "{clock}.",
    "{el vehicle} sale a {hour}.",
    "{el place} abre a {hour}.",
    "La clase de {subject} empieza a {hour}.",
    "Hoy es {day}, {date}.",
    "{name} nació el {date} de {year}.",
    "La fiesta es el {day} {date}.",
    "El {day} no trabajo.",
    "¿Nos vemos el {day} a {hour}?",
    # travel, places
    "{name} viaja a {city} en {sg vehicle}.",
    "Vamos a {el place} en {sg vehicle}.",
    "{el vehicle} a {city} llega tarde.",
    "¿Dónde está {el place}?",
    "{el place} está {prep} {el place}.",
    "De {city} a {city} hay {distance} kilómetros.",
    "{el place} está a {distance} kilómetros.",
    "¿A qué hora cierra {el place}?",
    "{past} fuimos a {el place} con {mi family}.",
    "Mañana viajamos a {city}.",
    "El billete a {city} cuesta {price} euros.",
    # activities
    "A {name} le gusta {activity}.",
    "A {mi family} le encanta {activity} {when}.",
    "¿Te gusta {activity}?",
    "{when} quiero {activity}.",
    "No me gusta {activity} {season}.",
    "{name} prefiere {activity} en {el place}.",
    "Aprendo {language} {when}.",
    # house
    "{el thing} está {prep} {el room}.",
    "¿Está {el thing} {prep} {el room}?",
    "La clave del wifi es {digits}.",
    "Mi número es {digits}.",
    "Busca {el thing} en la web.",
    "Suma {small} más {small}.",
    "{small} más {small} no son {small}.",
    "Gracias, {name}.",
    "¡Qué vergüenza, {name}!",
    "{mi family} es bilingüe.",
    "El pingüino y {el animal} son {friends}.",
    "Averigüé el precio de {el thing}.",
    "La antigüedad de {el place} es de {price} años.",
    "El examen de {subject} es el {day}.",
    "{mi family} explica el texto en {language}.",
    "La excursión a {city} es en {month}.",
    "Buenos días, {name}.",
    "Hasta el {day}, {name}.",
)

MAX_WORDS = 12
_LANGUAGES = (
    "español",
    "inglés",
    "francés",
    "japonés",
    "portugués",
    "quechua",
    "euskera",
    "kurdo",
    "alemán",
    "gallego",
)
_SIMPLE_DRINKS = ("agua", "leche", "agua fresca", "leche tibia")
_FRIENDS = ("amigos", "vecinos", "muy lentos", "muy ágiles", "felices")
_SLOT = re.compile(r"\{([^}]+)\}")
_NUMBERS = {"years": (2, 99), "price": (2, 999), "distance": (2, 999)}


def sentence_key(sentence: str) -> str:
    """What makes two sentences the same: their words, whatever the case and the punctuation."""
    return " ".join(re.findall(r"\w+", sentence.casefold()))


def sentences(seed: int) -> Iterator[str]:
    """Endless distinct sentences of 2 to 12 words; number n is the same on every run with this seed.

    Raises DataError when the grammar gives no new sentence any more (far beyond 100,000).
    """
    seen: set[str] = set()
    for index in range(10**9):
        for attempt in range(200):
            sentence = make_sentence(random.Random(f"{seed} sentence {index} {attempt}"))
            key = sentence_key(sentence)
            if key not in seen and len(key.split()) <= MAX_WORDS:
                seen.add(key)
                yield sentence
                break
        else:
            raise DataError(
                f"the grammar has no new sentence after {len(seen)}",
                fix="ask for fewer clips, or give your own sentences with --text",
                reason="grammar_exhausted",
            )


def make_sentence(rng: random.Random) -> str:
    """One sentence with its punctuation, drawn from `rng`."""
    last: list[tuple[Noun, bool]] = []  # predicates agree with the noun spoken last
    used: set[str] = set()

    def fill(slot: re.Match[str]) -> str:
        for _ in range(20):  # "café o café" is no sentence
            before = len(last)
            text = _fill(slot[1], rng, last)
            if text not in used:
                break
            del last[before:]
        used.add(text)
        return text

    return _polish(_SLOT.sub(fill, rng.choice(TEMPLATES)))


def _polish(text: str) -> str:
    text = re.sub(r"\b([Aa]|[Dd]e) el (?=[a-zñáéíóú])", lambda m: "al " if m[1] in "aA" else "del ", text)
    text = re.sub(r"\by (?=[iíIÍ]|hi(?!e))", "e ", text)
    text = re.sub(r"\bo (?=[oóOÓ]|ho)", "u ", text)
    start = re.search(r"\w", text)
    assert start is not None
    return text[: start.start()] + text[start.start()].upper() + text[start.start() + 1 :]


def _fill(slot: str, rng: random.Random, last: list[tuple[Noun, bool]]) -> str:
    form, *rest = slot.split()
    if not rest:
        return _word(form, rng)
    if form == "adj":
        noun, many = last[-1]
        return agree(rng.choice(ADJECTIVES[rest[0]]), noun.gender, many)
    noun = rng.choice(NOUNS[rest[0]])
    many = form in ("los", "unos", "num", "bare")
    last.append((noun, many))
    text = f"{_determiner(form, noun, rng)} {noun.plural if many else noun.word}".strip()
    if len(rest) > 1 and rng.random() < 0.5:
        text += " " + agree(rng.choice(ADJECTIVES[rest[1]]), noun.gender, many)
    return text


def _determiner(form: str, noun: Noun, rng: random.Random) -> str:
    feminine = noun.gender in ("f", "fa")
    if form == "num":
        top = 30 if rng.random() < 0.8 else 999
        return number_words(rng.randint(2, top), noun.gender)
    if form in ("bare", "sg"):
        return ""
    if form == "mi":
        return rng.choice(("mi", "tu", "su"))
    if form in ("el", "un"):
        masculine_article = not feminine or noun.gender == "fa"
        return form if masculine_article else {"el": "la", "un": "una"}[form]
    return {"los": "las", "unos": "unas", "este": "esta"}[form] if feminine else form


def agree(adjective: str, gender: str, many: bool) -> str:
    """The adjective (given in the masculine singular) for a noun of this gender: rojo, roja, rojos, rojas."""
    if gender != "m" and adjective.endswith("o"):
        adjective = adjective[:-1] + "a"
    return plural(adjective) if many else adjective


def _word(name: str, rng: random.Random) -> str:
    if name in WORDS:
        return rng.choice(WORDS[name])
    if name in _NUMBERS:
        return number_words(rng.randint(*_NUMBERS[name]), "m")
    made = {
        "language": lambda: rng.choice(_LANGUAGES),
        "friends": lambda: rng.choice(_FRIENDS),
        "simple_drink": lambda: rng.choice(_SIMPLE_DRINKS),
        "small": lambda: number_words(rng.randint(0, 29)),
        "digits": lambda: " ".join(number_words(rng.randint(0, 9)) for _ in range(rng.randint(3, 6))),
        "year": lambda: number_words(rng.randint(1900, 2029)),
        "date": lambda: f"{number_words(rng.randint(1, 31))} de {rng.choice(WORDS['month'])}",
        "hour": lambda: _hour(rng),
        "clock": lambda: ("es " if (hour := _hour(rng)).startswith("la ") else "son ") + hour,
    }
    return made[name]()


def _hour(rng: random.Random) -> str:
    hour = rng.randint(1, 12)
    article = "la una" if hour == 1 else f"las {number_words(hour)}"
    return article + rng.choice(("", " y media", " y cuarto", " menos cuarto", " y diez", " menos veinte", " en punto"))
