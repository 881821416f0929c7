"""The one error that a user is meant to read, and what it says of a name that does not exist."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class DeitkitError(Exception):
    """A mistake the user can mend; its message says what, where, and what to do, in one sentence.

    The command line prints the message and exits with status 2, without a traceback.
    """


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The one of `known` that is most like `name`; None where none is much like it."""
    return next(iter(difflib.get_close_matches(name, list(known), n=1)), None)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """ "; did you mean 'x'?", to end a sentence, where one of `known` is much like `name`; else nothing."""
    near = nearest(name, known)
    return f"; did you mean {near!r}?" if near is not None else ""
