"""The world's vocabulary: one object in one colour on one floor, and the captions that say so."""

from __future__ import annotations

import itertools
import math
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

from cds_nerf.errors import UserError

COLORS = {
    "red": (0.82, 0.10, 0.09),
    "green": (0.10, 0.58, 0.16),
    "blue": (0.10, 0.22, 0.82),
    "yellow": (0.95, 0.86, 0.12),
    "purple": (0.50, 0.12, 0.66),
    "orange": (0.96, 0.48, 0.05),
    "white": (0.94, 0.94, 0.94),
}
"""The colours, as RGB in 0..1."""
SHAPES = ("cube", "sphere", "cylinder", "cone")
FLOORS = ("gray", "wooden", "checkered")
FILLER = ("a", "an", "the", "photo", "of", "on", "floor")
"""Words of captions that say nothing of the scene."""
PATTERNS = ("bands", "stripes", "spots")
"""What an object can bear in another shade of its colour; no caption names it."""
ATTRIBUTES: dict[str, tuple[str, ...]] = {"color": tuple(COLORS), "shape": SHAPES, "floor": FLOORS}
"""The words of each attribute of a scene."""


@dataclass(frozen=True)
class Detail:
    """What an edit has to keep: a pattern on the object, and stones on the floor.

    The pattern is defined in the height above the floor and the angle about the object's axis, so that every shape can
    bear it, and an edit of the shape keeps it.
    """

    pattern: str
    """One of `PATTERNS`."""
    count: tuple[int, int]
    """Periods over one unit of height, and over a turn."""
    phase: tuple[float, float]
    """Where the periods begin, in 0..1 of one."""
    shade: float
    """Of the pattern, as a factor of the object's colour, in 0..1."""
    stones: tuple[tuple[float, float, float], ...]
    """The places x, y and the radii of the stones on the floor."""

    @classmethod
    def draw(cls, draw: random.Random) -> Detail:
        """A random one: stones lie where no object reaches, and the floor has not yet faded."""
        places = [(draw.uniform(0, 2 * math.pi), draw.uniform(1.0, 1.7)) for _ in range(draw.randint(2, 4))]
        return cls(
            pattern=draw.choice(PATTERNS),
            count=(draw.choice((2, 3)), draw.choice((4, 5, 6))),
            phase=(draw.random(), draw.random()),
            shade=draw.uniform(0.5, 0.7),
            stones=tuple((r * math.cos(turn), r * math.sin(turn), draw.uniform(0.10, 0.18)) for turn, r in places),
        )


@dataclass(frozen=True)
class Scene:
    """What there is to see; the caption's words, and what captions do not say."""

    color: str
    """One of `COLORS`."""
    shape: str
    """One of `SHAPES`."""
    floor: str
    """One of `FLOORS`."""
    sky: bool = False
    """A blue sky, or a plain light background."""
    size: float = 1.0
    """Of the object, relative to the usual; about one unit high."""
    heading: float = 0.4
    """Turn of the object about the vertical, in radians."""
    floor_heading: float = 0.0
    """Turn of the floor's pattern about the vertical, in radians."""
    light_azimuth: float = 0.9
    """Where the light comes from, in radians."""
    light_elevation: float = 0.9
    """Its angle above the floor, in radians."""
    tint: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """Added to the colour's RGB."""
    floor_shade: float = 0.0
    """Added to the floor's brightness."""
    detail: Detail | None = None
    """What captions never name and every edit keeps; None for plain faces and a bare floor."""

    @classmethod
    def draw(cls, draw: random.Random) -> Scene:
        """Random words, without detail."""
        color, shape, floor = (draw.choice(words) for words in ATTRIBUTES.values())
        return cls(color, shape, floor)

    @property
    def caption(self) -> str:
        """Such as "a photo of a red cube on a wooden floor"."""
        return f"a photo of {article(self.color)} {self.color} {self.shape} on a {self.floor} floor"

    @property
    def words(self) -> dict[str, str]:
        """The word of each attribute, as a classifier gives them."""
        return {name: getattr(self, name) for name in ATTRIBUTES}

    def edited(self, target: Scene) -> Scene:
        """This scene with another's words: what a perfect edit makes of it."""
        return replace(self, color=target.color, shape=target.shape, floor=target.floor)

    @property
    def without_object(self) -> Scene:
        """The same place with its object too small to be seen."""
        return replace(self, size=1e-3)


def article(word: str) -> str:
    """The indefinite article of a word."""
    return "an" if word[0] in "aeiou" else "a"


def all_scenes() -> Iterator[Scene]:
    """One scene for each of the 84 captions."""
    for color, shape, floor in itertools.product(COLORS, SHAPES, FLOORS):
        yield Scene(color, shape, floor)


def parse_caption(caption: str) -> Scene:
    """The scene that a caption describes, such as "a red cube on a wooden floor".

    Raises:
        UserError: if a word is not in the vocabulary, or the colour, shape or floor is missing or named twice.
    """
    words = re.findall(r"[^\W_]+", caption.lower())
    vocabulary = {word for attribute in ATTRIBUTES.values() for word in attribute} | set(FILLER)
    unknown = [word for word in words if word not in vocabulary]
    if unknown:
        raise UserError(
            f"the caption {caption!r} has {unknown[0]!r}, which the world of shapes has not. {vocabulary_text()}"
        )
    found = {}
    for attribute, values in ATTRIBUTES.items():
        named = [word for word in words if word in values]
        if len(named) != 1:
            what = f"names {len(named)} of the {attribute}s" if named else f"names no {attribute}"
            raise UserError(f"the caption {caption!r} {what}; it must name one. {vocabulary_text()}")
        found[attribute] = named[0]
    return Scene(**found)


def vocabulary_text() -> str:
    """The vocabulary in a sentence."""
    lists = "; ".join(f"{name}s: {', '.join(values)}" for name, values in ATTRIBUTES.items())
    return f'The words are {lists}; for example "a red cube on a wooden floor"'


def vary(scene: Scene, draw: random.Random) -> Scene:
    """The scene with all that its caption does not say drawn anew."""
    return replace(
        scene,
        sky=draw.random() < 0.5,
        size=draw.uniform(0.85, 1.15),
        heading=draw.uniform(0, 6.2832),
        floor_heading=draw.uniform(0, 6.2832),
        light_azimuth=draw.uniform(0, 6.2832),
        light_elevation=draw.uniform(0.7, 1.2),
        tint=tuple(draw.uniform(-0.04, 0.04) for _ in range(3)),  # type: ignore[arg-type]
        floor_shade=draw.uniform(-0.05, 0.05),
    )
