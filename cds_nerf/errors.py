"""What ends a program in one line: mistakes that the user can mend, Ctrl-C, bugs; and advice that lets work go on."""

from __future__ import annotations

import os
import warnings
from collections.abc import Collection, Iterable
from difflib import get_close_matches

TRACEBACK = "CDS_NERF_TRACEBACK"
"""The environment variable that shows where an error comes from that is not the user's."""

_python_format = warnings.formatwarning


class UserError(ValueError):
    """A wrong value from the user: the message names the thing, the value and the way out.

    Command lines print the message alone and exit with status 1; any other exception is a bug of ours.
    """


class Interrupted(BaseException):
    """Ctrl-C in an edit of a scene; the message says how it goes on.

    It is no KeyboardInterrupt, which nerfstudio's launcher would answer with a traceback and exit status 0.
    """

    status = 130
    """The exit status, as of a shell's."""


class Terminated(Interrupted):
    """SIGTERM, with which a cluster ends a job."""

    status = 143


class UserAdvice(UserWarning):
    """What the user should know and may want to change: one sentence, which command lines print alone."""


def print_advice_alone(program: str) -> None:
    """From here on, print advice as one line behind the program's name, not as Python prints warnings."""

    def as_line(
        message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
    ) -> str:
        if issubclass(category, UserAdvice):
            return f"{program}: warning: {message}\n"
        return _python_format(message, category, filename, lineno, line)

    warnings.formatwarning = as_line


def first_line(error: BaseException) -> str:
    """The first line of what a library says of a failure, without its full stop; the exception's name if it is mute.

    One that ends in a colon is followed by the next.
    """
    first, *rest = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    if rest and first.endswith(":"):
        first = f"{first} {rest[0]}"
    return first.rstrip(".")


def nearest(name: str, names: Iterable[str], cutoff: float = 0.6) -> str | None:
    """The right name that a wrong one is nearest to, if their likeness in 0..1 is at least the cutoff."""
    return next(iter(get_close_matches(name, names, n=1, cutoff=cutoff)), None)


def way_out(name: str, names: Collection[str]) -> str:
    """A question that names the nearest of the right names, or else all of them."""
    close = nearest(name, names)
    return f"did you mean {close}?" if close else f"there are {', '.join(names)}"


def in_one_line(error: Exception) -> str:
    """What a user is told of any error: a mistake that can be mended in its own words, another by its type as well.

    Raises:
        Exception: the error, if it is no such mistake and the environment variable `TRACEBACK` is set.
    """
    if isinstance(error, UserError | FloatingPointError):
        return str(error)
    if os.environ.get(TRACEBACK):
        raise error
    return told_as_bug(error)


def told_as_bug(error: BaseException) -> str:
    """An error that is not the user's, in one line: its type, what it says, and how to see where it comes from."""
    return f"{type(error).__name__}: {first_line(error)} ({TRACEBACK}=1 before the command shows where)"
