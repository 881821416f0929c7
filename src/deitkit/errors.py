"""The one error that a user is meant to read."""


class DeitkitError(Exception):
    """A mistake the user can mend; its message says what, where, and what to do, in one sentence.

    The command line prints the message and exits with status 2, without a traceback.
    """
