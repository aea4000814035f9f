"""The one exception for a user's mistake: its message is the whole explanation, on one line."""


class UserError(Exception):
    """Bad input. The message says what was found, where, what was expected, and what to do next.

    The command line prints it as one line and exits with status 2; no traceback.
    """
