"""Whether edited pictures show what the target says, and still what the edit was not about."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

Words = Mapping[str, str]
"""The word of each attribute, such as {"color": "red", "shape": "cube", "floor": "gray"}."""


def share_with_target(seen: Sequence[Words], target: Words) -> float:
    """The share of pictures, in 0..1, in which every attribute is the target's.

    Args:
        seen: what each picture shows.
        target: what they should show.
    """
    return sum(all(words[name] == word for name, word in target.items()) for words in seen) / len(seen)


def share_kept(seen: Sequence[Words], source: Words, target: Words) -> float:
    """The share of pictures, in 0..1, that keep every attribute in which source and target agree.

    Args:
        seen: what each picture shows.
        source: what they showed before the edit.
        target: what they should show.
    """
    return share_with_target(seen, {name: word for name, word in source.items() if target[name] == word})
