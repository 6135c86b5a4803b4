import random

import pytest

from cds_nerf.errors import UserError
from cds_nerf.shapes.scene import Scene, all_scenes, parse_caption, vary


def test_every_caption_is_understood_as_its_scene() -> None:
    scenes = list(all_scenes())
    assert len({scene.caption for scene in scenes}) == 84
    assert [parse_caption(scene.caption) for scene in scenes] == scenes


def test_an_orange_object_gets_the_right_article() -> None:
    assert Scene("orange", "cone", "gray").caption == "a photo of an orange cone on a gray floor"


def test_captions_are_read_without_the_filler_and_in_any_case() -> None:
    assert parse_caption("Red cube, wooden floor!") == Scene("red", "cube", "wooden")


@pytest.mark.parametrize(
    ("caption", "complaint"),
    [
        ("a red dragon on a wooden floor", "'dragon'"),
        ("a cube on a wooden floor", "names no color"),
        ("a red blue cube on a wooden floor", "names 2 of the colors"),
        ("", "names no color"),
    ],
)
def test_a_caption_that_is_no_scene_is_told_with_the_vocabulary(caption: str, complaint: str) -> None:
    with pytest.raises(UserError, match=complaint) as raised:
        parse_caption(caption)
    for word in ("purple", "cylinder", "checkered"):
        assert word in str(raised.value)


def test_an_edited_scene_differs_in_its_words_alone() -> None:
    scene = vary(Scene("red", "cube", "wooden"), random.Random(0))
    edited = scene.edited(Scene("blue", "cone", "gray"))
    assert (edited.color, edited.shape, edited.floor) == ("blue", "cone", "gray")
    assert edited.edited(scene) == scene
