"""The words of the synthetic corpus: nouns with gender and plural, adjectives, names, numbers as words.

All word lists are our own. A noun is written `word gender [plural]`: `m`, `f`, or `fa` for feminine nouns that take
`el` in the singular (el águila negra). The plural is derived unless it is given.
"""

from __future__ import annotations

from dataclasses import dataclass

_ACCENTLESS = str.maketrans("áéíóú", "aeiou")
_VOWELS = "aeiouáéíóú"


@dataclass(frozen=True)
class Noun:
    """A noun with its grammatical gender (`m`, `f`, or `fa`: feminine with the article `el`) and its plural."""

    word: str
    gender: str
    plural: str


def plural(word: str) -> str:
    """The regular Spanish plural: casa, casas; pez, peces; ratón, ratones; autobús, autobuses."""
    if word[-1] in _VOWELS:
        return word + "s"
    if word[-1] == "z":
        return word[:-1] + "ces"
    if word[-1] in "ns" and word[-2] in "áéíóú":
        word = word[:-2] + word[-2:].translate(_ACCENTLESS)
    return word + "es"


def _nouns(text: str) -> tuple[Noun, ...]:
    nouns = []
    for entry in text.replace("\n", " ").split(","):
        word, gender, *given = entry.split()
        nouns.append(Noun(word, gender, given[0] if given else plural(word)))
    return tuple(nouns)


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.replace("\n", " ").split(","))


NOUNS: dict[str, tuple[Noun, ...]] = {
    "animal": _nouns(
        """perro m, gato m, caballo m, vaca f, oveja f, pingüino m, cigüeña f, conejo m, ratón m, pájaro m, tortuga f,
        abeja f, araña f, león m, tigre m, oso m, zorro m, burro m, gallina f, pato m, rana f, pez m, delfín m,
        ballena f, mono m, elefante m, jirafa f, koala m, águila fa, yegua f, lobo m, cebra f, ñandú m ñandúes,
        canguro m, búho m, kiwi m"""
    ),
    "food": _nouns(
        """manzana f, naranja f, plátano m, kiwi m, pera f, uva f, fresa f, limón m, melón m, sandía f, tomate m,
        patata f, cebolla f, zanahoria f, pepino m, queso m, huevo m, pan m, galleta f, bocadillo m, sándwich m,
        empanada f, tortilla f, piña f, castaña f, salchicha f, yogur m, pastel m, helado m, bizcocho m, pimiento m,
        calabaza f, champiñón m, lechuga f, waffle m, kebab m kebabs"""
    ),
    "thing": _nouns(
        """libro m, mesa f, silla f, reloj m, lámpara f, teléfono m, ordenador m, cámara f, llave f, guitarra f,
        bolígrafo m, lápiz m, cuaderno m, mochila f, paraguas m paraguas, paragüero m, bicicleta f, pelota f, espejo m,
        cuchara f, tenedor m, cuchillo m, botella f, vaso m, taza f, manta f, almohada f, maleta f, caja f, violín m,
        piano m, tambor m, cometa f, periódico m, revista f, mapa m, foto f, bañera f, muñeca f, kayak m kayaks"""
    ),
    "clothes": _nouns(
        """camisa f, pantalón m, falda f, chaqueta f, abrigo m, bufanda f, zapato m, bota f, calcetín m, gorro m,
        guante m, vestido m, cinturón m, pañuelo m, kimono m, sombrero m"""
    ),
    "place": _nouns(
        """escuela f, parque m, mercado m, museo m, biblioteca f, hospital m, estación f, playa f, montaña f, plaza f,
        iglesia f, oficina f, restaurante m, hotel m, teatro m, cine m, puerto m, aeropuerto m, farmacia f,
        panadería f, jardín m, cocina f, puente m, universidad f, piscina f, kiosco m, bosque m, isla f, pueblo m"""
    ),
    "vehicle": _nouns(
        "taxi m, tren m, autobús m, avión m, barco m, coche m, tranvía m, camión m, moto f, helicóptero m"
    ),
    "person": _nouns(
        """profesor m, profesora f, médico m, médica f, abogado m, abogada f, camarero m, camarera f, vecino m,
        vecina f, niño m, niña f, pintor m, pintora f, cocinero m, cocinera f, enfermero m, enfermera f, músico m,
        jardinero m, taxista m, dueño m, dueña f, alumno m, alumna f, carpintero m, ingeniera f, zapatero m,
        campeona f, señor m, señora f"""
    ),
    "family": _nouns(
        """madre f, padre m, hermano m, hermana f, abuelo m, abuela f, tío m, tía f, primo m, prima f, hijo m, hija f,
        sobrino m, sobrina f, cuñado m, cuñada f, nieto m, nieta f, suegra f"""
    ),
    "room": _nouns("mesa f, cama f, silla f, cocina f, ventana f, puerta f, escalera f, pared f, alfombra f, sofá m"),
}

# Adjectives by what they may describe; the masculine singular is written, the rest is derived.
ADJECTIVES: dict[str, tuple[str, ...]] = {
    "thing": _words(
        """rojo, azul, verde, amarillo, negro, blanco, gris, grande, pequeño, nuevo, viejo, caro, barato, bonito,
        limpio, sucio, ligero, pesado, antiguo, extraño, útil, frágil"""
    ),
    "food": _words("maduro, fresco, dulce, rico, pequeño, grande, frío, caliente, barato, caro, exquisito, ácido"),
    "animal": _words("grande, pequeño, negro, blanco, viejo, rápido, tranquilo, salvaje, feliz, extraño, débil, ágil"),
    "person": _words("amable, simpático, alegre, alto, cansado, bilingüe, listo, feliz, educado, famoso, tímido"),
}

WORDS: dict[str, tuple[str, ...]] = {
    "name": _words(
        """María, José, Ángel, Íñigo, Begoña, Úrsula, Óscar, Inés, Andrés, Sofía, Lucía, Raúl, Ximena, Walter, Kike,
        Karina, Yolanda, Zoe, Quique, Fátima, Joaquín, Hugo, Guadalupe, Pablo, Elena, Carmen, Félix, Wendy, Jesús,
        Beatriz, Toño, Víctor, Iker, Koldo"""
    ),
    "city": _words(
        """Madrid, Sevilla, Córdoba, Cádiz, Málaga, León, Bogotá, Lima, Quito, México, Buenos Aires, Washington,
        Nueva York, Kiev, Kenia, Taiwán, Hawái, Logroño, Mayagüez, Caracas, Montevideo, Tokio, Cuzco, Zaragoza"""
    ),
    "drink": _words("agua, leche, café, té, zumo de naranja, vino, whisky, cerveza, limonada, vodka, kéfir, chocolate"),
    "day": _words("lunes, martes, miércoles, jueves, viernes, sábado, domingo"),
    "month": _words(
        "enero, febrero, marzo, abril, mayo, junio, julio, agosto, septiembre, octubre, noviembre, diciembre"
    ),
    "season": _words("en primavera, en verano, en otoño, en invierno"),
    "when": _words(
        """hoy, mañana, esta tarde, esta noche, cada día, los domingos, todas las mañanas, siempre, a veces,
        después de comer, antes de cenar, este fin de semana"""
    ),
    "past": _words("ayer, anoche, el lunes, el año pasado, hace un rato, esta mañana, la semana pasada, anteayer"),
    "weather": _words(
        """hace frío, hace calor, hace mucho viento, llueve mucho, nieva, hace sol, hay niebla, hay tormenta,
        el cielo está gris, está lloviendo, no hace viento"""
    ),
    "subject": _words(
        """matemáticas, historia, música, química, lingüística, inglés, francés, japonés, física, biología, kárate,
        geografía, dibujo, quechua, español"""
    ),
    "feeling": _words("vergüenza, hambre, sed, sueño, miedo, prisa, frío, calor, razón, suerte"),
    "quantity": _words("un kilo, medio kilo, dos kilos, tres kilos, una caja, una bolsa, cien gramos, una docena"),
    "verb_inf": _words(
        """comprar, vender, limpiar, dibujar, buscar, guardar, pintar, regalar, traer, llevar, ver, perder, elegir"""
    ),
    "bought": _words("compró, vendió, perdió, encontró, rompió, buscó, trajo, dibujó, guardó, pidió, eligió, regaló"),
    "wants": _words("quiere, busca, necesita, compra, vende, lleva, tiene, prefiere, dibuja, limpia"),
    "eats": _words("come, prepara, compra, pide, corta, prueba, quiere"),
    "activity": _words(
        """leer, bailar, cantar, nadar, viajar, cocinar, dormir, correr, jugar al ajedrez, navegar por la web,
        montar a caballo, aprender idiomas, tocar el piano, escuchar música, ver películas, hacer yoga, hacer windsurf,
        practicar kárate, pasear sin rumbo, escribir cuentos"""
    ),
    "state": _words("está roto, no funciona, es nuevo, va muy lento, cuesta poco, es muy caro, funciona bien"),
    "device": _words("el wifi, el teléfono, el ordenador, el taxi, el ascensor, el reloj, el horno, el desagüe"),
    "prep": _words("debajo de, encima de, detrás de, delante de, cerca de, lejos de, junto a"),
}

_ONES = _words(
    """cero, uno, dos, tres, cuatro, cinco, seis, siete, ocho, nueve, diez, once, doce, trece, catorce, quince,
    dieciséis, diecisiete, dieciocho, diecinueve, veinte, veintiuno, veintidós, veintitrés, veinticuatro, veinticinco,
    veintiséis, veintisiete, veintiocho, veintinueve"""
)
_TENS = _words("_, _, _, treinta, cuarenta, cincuenta, sesenta, setenta, ochenta, noventa")
_HUNDREDS = _words(
    """_, ciento, doscientos, trescientos, cuatrocientos, quinientos, seiscientos, setecientos, ochocientos,
    novecientos"""
)


def number_words(number: int, gender: str = "", /) -> str:
    """Spanish words for 0 .. 999,999; `gender` (`m`, `f`, `fa`) makes it agree with a noun that follows.

    `21` alone is veintiuno, before perros veintiún, before vacas veintiuna. Raises ValueError outside the range.
    """
    if not 0 <= number <= 999_999:
        raise ValueError(f"number_words is for 0 to 999,999, not {number}")
    thousands, rest = divmod(number, 1000)
    if not thousands:
        return _below_thousand(rest, gender)
    # The number of thousands agrees in hundreds (doscientas mil vacas), its one is always short (veintiún mil).
    head = "mil" if thousands == 1 else _below_thousand(thousands, "mf" if gender.startswith("f") else "m") + " mil"
    return f"{head} {_below_thousand(rest, gender)}" if rest else head


def _below_thousand(number: int, gender: str) -> str:
    if number == 100:
        return "cien"
    hundreds, rest = divmod(number, 100)
    parts = []
    if hundreds:
        feminine = gender in ("f", "fa", "mf") and hundreds > 1
        parts.append(_HUNDREDS[hundreds][:-2] + "as" if feminine else _HUNDREDS[hundreds])
    if rest or not hundreds:
        if rest < 30:
            word = _ONES[rest]
        else:
            tens, ones = divmod(rest, 10)
            word = _TENS[tens] + (f" y {_ONES[ones]}" if ones else "")
        parts.append(_agree_one(word, gender))
    return " ".join(parts)


def _agree_one(word: str, gender: str) -> str:
    if not word.endswith("uno") or not gender:
        return word
    if gender in ("f", "fa"):
        return word[:-1] + "a"
    return "veintiún" if word == "veintiuno" else word[:-1]
