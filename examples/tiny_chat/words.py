# ruff: noqa: SIM905 - word lists read better as text
"""Words and made-up values that the synthetic conversations are written with.

Values are invented, so a model can only get them right by copying. One made-up word in eight is reserved for the
held-out test (`held_out`), so no test value is ever seen in training.
"""

from __future__ import annotations

import random
import string
import zlib
from collections.abc import Callable, Sequence
from typing import TypeVar

T = TypeVar("T")

ONSETS = "b br c ch cl d dr f fl g gl gr h j k kl l m n p pl pr qu r s sh sk st t th tr v w y z".split()
VOWELS = "a a a e e e i i o o u ai ea ee ia io oa ou y".split()
CODAS = ["", "", "", "", "l", "n", "r", "s", "t", "m", "x", "k", "nd", "rn", "sh", "ck", "lt", "th", "ng", "p", "v"]

FIRST_NAMES = """Alice Bob Carol David Emma Frank Grace Henry Irene Jack Kate Liam Mia Noah Olivia Peter Quinn Rosa Sam
Tom Uma Victor Wendy Xavier Yuki Zoe Anna Ben Clara Daniel Ella Felix Hannah Ivan Julia Karl Laura Max Nina Oscar Paul
Rachel Simon Tara Walter Maria John Mary Sarah Michael Ada Alan Lena Omar Priya Chen Jesse Jamal""".split()
CITIES = """Tokyo Paris London Berlin Rome Madrid Oslo Lima Cairo Delhi Sydney Toronto Chicago Boston Dublin Vienna
Prague Lisbon Athens Warsaw Seoul Beijing Moscow Nairobi Munich Zurich Geneva Milan Hamburg Seattle Denver Austin
Dallas Miami Montreal Mumbai Bangkok Singapore Istanbul Helsinki""".split()
LONG_CITIES = [
    "San Francisco, CA",
    "San Francisco",
    "New York",
    "New York, NY",
    "Los Angeles",
    "Buenos Aires",
    "Mexico City",
    "Hong Kong",
    "Paris, France",
    "Boston, MA",
    "Cape Town",
    "Tokyo, Japan",
]
NOUNS = """reactor garden engine library archive bridge printer server harbor museum kitchen tunnel market station
tower school hospital factory airport theater lake forest river mountain valley island castle ship train truck drone
robot camera sensor battery turbine pump valve boiler generator telescope satellite antenna network router database
cache queue worker scheduler supervisor gateway pipeline dashboard report invoice order ticket project team meeting
workshop conference festival parade concert game league match contract budget license policy backup password key code
door gate window roof wall floor lobby office lab vault cellar attic elevator stage piano violin guitar painting
statue coin stamp map book letter recipe soup cake bread cheese tea coffee juice wine apple orange banana cat dog bird
horse fish bear wolf fox owl bee planet moon comet star rocket probe beacon signal alarm fence barn mill farm field
orchard well fountain clock calendar lamp mirror carpet chair table desk shelf box crate barrel bottle glass crystal
model token prompt index document file folder disk cluster node cable plug switch fan filter tank vessel""".split()
ADJECTIVES = """red blue green old new small large quiet bright dark northern southern eastern western main second third
final secret public private annual weekly daily spare lost golden silver wooden heavy light fast slow central outer
inner upper lower hidden royal modern ancient digital local global primary secondary mobile frozen warm cold""".split()
ATTRIBUTES = """password color name owner price height weight code speed manager director address capacity version
serial number status location size age leader budget deadline author founder nickname motto price limit temperature
pressure port path mode level channel label barcode supplier inspector architect pilot captain chef mascot symbol
material flavor score rating depth width length volume frequency voltage""".split()
VERBS = """open close check start stop paint repair clean move count find read send store update delete create book
order cancel print scan lock unlock charge measure inspect schedule convert translate rename copy restart notify build
test deploy ship track rent lease review archive export import""".split()
JOBS = """welder pilot baker nurse teacher engineer doctor farmer painter lawyer singer driver chemist librarian
gardener plumber carpenter sailor tailor writer dentist architect mechanic astronomer""".split()
WEATHERS = """sunny cloudy rainy windy snowy foggy stormy clear mild humid freezing hot""".split()
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
MONTHS = "January February March April May June July August September October November December".split()
COLORS = "red blue green yellow purple orange black white brown pink gray silver teal violet".split()
PARAMETERS = """city location query name count limit unit text date time user path file color size amount price title
topic customer_name description email address language code item quantity priority status category id number value
level mode format duration width height start end source target message tag owner team answer_style room country
seconds minutes days max_results user_id order_id file_path first_name last_name sender subject body""".split()
SCRIPTS = [
    (0x4E00, 0x4F60),
    (0x5927, 0x59D0),
    (0x3041, 0x3093),
    (0x30A1, 0x30F3),
    (0x0410, 0x044F),
    (0x03B1, 0x03C9),
    (0xAC00, 0xAC80),
    (0x0905, 0x0939),
    (0x00E0, 0x00F6),
]


def held_out(word: str) -> bool:
    """True for the eighth of all made-up words that only the held-out test may use."""
    return zlib.crc32(word.lower().encode()) % 8 == 0


class Values:
    """Draws random values; a test drawer uses held-out words only, a training drawer never does."""

    def __init__(self, rng: random.Random, *, testing: bool) -> None:
        self.rng = rng
        self.testing = testing

    def pick(self, items: Sequence[T]) -> T:
        return items[int(self.rng.random() * len(items))]

    def chance(self, probability: float) -> bool:
        return self.rng.random() < probability

    def several(self, count: int, draw: Callable[[], T]) -> list[T]:
        """`count` different draws."""
        drawn: list[T] = []
        while len(drawn) < count:
            value = draw()
            if value not in drawn:
                drawn.append(value)
        return drawn

    def word(self) -> str:
        """A made-up lower-case word."""
        while True:
            syllables = self.rng.choices((1, 2, 3), (3, 6, 2))[0]
            made = "".join(self.pick(ONSETS) + self.pick(VOWELS) + self.pick(CODAS) for _ in range(syllables))
            if len(made) > 3 and held_out(made) == self.testing:
                return made

    def name(self) -> str:
        """A made-up proper name; in training sometimes a real first name."""
        return self.pick(FIRST_NAMES) if self.chance(0.2) else self.word().capitalize()

    def full_name(self) -> str:
        return f"{self.name()} {self.word().capitalize()}" if self.chance(0.3) else self.name()

    def place(self) -> str:
        if self.chance(0.3):
            return self.pick(CITIES)
        if self.chance(0.15):
            return self.pick(LONG_CITIES)
        kinds = ["Harbor", "City", "Bay", "Hill", "Falls"]
        return self.word().capitalize() + (f" {self.pick(kinds)}" if self.chance(0.2) else "")

    def organization(self) -> str:
        kinds = ["Labs", "Industries", "Inc", "Group", "Institute", "Systems", "Bank", "Airlines", "Foods"]
        return f"{self.word().capitalize()} {self.pick(kinds)}"

    def integer(self) -> int:
        return int(10 ** self.rng.uniform(0, 4))

    def decimal(self) -> str:
        return f"{self.integer() % 1000}.{self.rng.randint(1, 99)}"

    def code(self) -> str:
        """A password-like code: `blue-heron-42`, `X7-QP41`, `zorvik42`."""
        form = self.rng.random()
        if form < 0.35:
            return f"{self.pick(COLORS)}-{self.word()}-{self.rng.randint(1, 99)}"
        if form < 0.55:
            return f"{self.word()}-{self.word()}"
        if form < 0.75:
            return f"{self.word()}{self.rng.randint(1, 999)}"
        letters = "".join(self.rng.choices(string.ascii_uppercase, k=self.rng.randint(1, 3)))
        return f"{letters}{self.rng.randint(1, 99)}-{self.word().upper()[:3]}{self.rng.randint(1, 999)}"

    def foreign(self) -> str:
        """Two to six characters of one other script."""
        low, high = self.pick(SCRIPTS)
        return "".join(chr(self.rng.randint(low, high)) for _ in range(self.rng.randint(2, 6)))

    def noun_phrase(self) -> str:
        """Two or three words for a thing: `blue reactor`, `zorvik engine`, `quiet garden gate`."""
        first = self.word().capitalize() if self.chance(0.35) else self.pick(ADJECTIVES)
        second = f" {self.pick(NOUNS)}" if self.chance(0.15) else ""
        return f"{first} {self.pick(NOUNS)}{second}"

    def phrase(self) -> str:
        """A short free text, part real words and part made up."""
        count = self.rng.randint(1, 4)
        return " ".join(self.word() if self.chance(0.5) else self.pick(NOUNS + ADJECTIVES) for _ in range(count))

    def value(self) -> str:
        """Any kind of value a sentence can end with."""
        form = self.rng.random()
        if form < 0.25:
            return self.code()
        if form < 0.40:
            return self.full_name()
        if form < 0.50:
            return self.word()
        if form < 0.60:
            return self.place()
        if form < 0.72:
            units = [
                "meters",
                "kilograms",
                "dollars",
                "euros",
                "minutes",
                "degrees",
                "percent",
                "GB",
                "volts",
                "liters",
            ]
            number = self.decimal() if self.chance(0.2) else str(self.integer())
            return number + (f" {self.pick(units)}" if self.chance(0.6) else "")
        if form < 0.80:
            return f"{self.pick(COLORS)} {self.pick(NOUNS)}" if self.chance(0.5) else self.pick(COLORS)
        if form < 0.88:
            return self.date()
        return self.phrase()

    def date(self) -> str:
        day, month, year = self.rng.randint(1, 28), self.pick(MONTHS), self.rng.randint(1890, 2060)
        return self.pick([f"{month} {day}", f"{day} {month} {year}", str(year), self.pick(DAYS), f"{month} {year}"])
