"""The one error that a user is meant to read, and what it says of a name that does not exist."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class DeitkitError(Exception):
    """A mistake the user can mend; its message says what, where, and what to do, in one sentence.

    The command line prints the message and exits with status 2, without a traceback.
    """


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """ "; did you mean 'x'?", to end a sentence, where one of `known` is much like `name`; else nothing."""
    near = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {near[0]!r}?" if near else ""
