"""Which options of a command line were typed, told by its words and what tyro made of them."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field
from typing import Annotated, Any

import pytest
import tyro

from cds_nerf.errors import UserError
from cds_nerf.typed_options import as_flag, differing_options, set_value_at, typed_options, value_at


@dataclass
class Lamp:
    watts: int = 5
    data: str = "lamp"


@dataclass
class Candle:
    hours: int = 3


@dataclass
class Room:
    door: str = "closed"
    data: str = "room"
    sizes: tuple[int, ...] = (1, 2)
    heated: bool = False
    walls: dict[str, Any] = field(default_factory=lambda: {"north_wall": {"height": 2.5}})
    windows: list[dict[str, int]] = field(default_factory=lambda: [{"panes": 4}, {"panes": 6}])
    table: Annotated[Candle, tyro.conf.arg(name="")] = field(default_factory=Candle)
    shelf: Candle = field(default_factory=Candle)
    light: tyro.conf.OmitSubcommandPrefixes[
        Annotated[Lamp, tyro.conf.subcommand("the-lamp")] | Annotated[Candle, tyro.conf.subcommand("the-candle")]
    ] = field(default_factory=Lamp)


LIGHTS = {"the-lamp": "light", "the-candle": "light"}


@pytest.mark.parametrize(
    ("line", "typed"),
    [
        ("", ""),
        ("--door closed --data=room", "door data"),
        ("--sizes 1 2", "sizes"),
        ("--heated", "heated"),
        ("--no-heated", "heated"),
        ("--walls.north-wall.height 2.5 --windows.1.panes 6", "walls.north_wall.height windows.1.panes"),
        ("--walls.north_wall.height=2.5", "walls.north_wall.height"),
        ("--hours 3 --shelf.hours 3", "table.hours shelf.hours"),
        ("the-lamp", "light"),
        ("the_lamp", "light"),
        ("--data room the-lamp --data lamp", "data light light.data"),
        ("the-candle --hours 3", "light light.hours"),
        ("--door the-lamp", "door"),
        ("--door=the-lamp the-candle", "door light"),
        ("--sizes the-lamp --watts 5", "sizes light light.watts"),
        ("--door=--data", "door"),
        ("--sizes -1 -2", "sizes"),
    ],
)
def test_what_was_typed_is_known_whatever_its_value(line, typed):
    words = shlex.split(line)
    room = tyro.cli(Room, args=words)
    assert typed_options(words, room, LIGHTS) == set(typed.split())


def test_option_by_a_name_that_is_not_known_is_no_silent_one():
    with pytest.raises(UserError, match="--roof is no option that is known"):
        typed_options(["--roof", "flat"], Room())


def test_fields_that_differ_are_found():
    room = Room(door="open", sizes=(1,), heated=True, light=Candle())
    room.walls["north_wall"]["height"] = 3.0
    room.shelf.hours = 4
    assert differing_options(room, Room()) == {
        *("door", "sizes", "heated", "light", "walls.north_wall.height", "shelf.hours")
    }
    assert not differing_options(Room(), Room())


@pytest.mark.parametrize("path", ["door", "shelf.hours", "walls.north_wall.height", "windows.1.panes", "sizes.1"])
def test_value_is_read_and_changed_by_its_path(path):
    room = Room()
    set_value_at(room, path, 7)
    assert value_at(room, path) == 7
    assert value_at(Room(), path) != 7


@pytest.mark.parametrize("path", ["roof", "shelf.door", "walls.west", "windows.2", "door.handle"])
def test_path_of_no_field_is_an_error(path):
    for call in (lambda: value_at(Room(), path), lambda: set_value_at(Room(), path, 7)):
        with pytest.raises(LookupError, match=path):
            call()


def test_flag_is_what_is_typed():
    assert as_flag("pipeline.guidance.w_cut") == "--pipeline.guidance.w-cut"
