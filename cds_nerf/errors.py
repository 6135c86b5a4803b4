"""The error for mistakes that the user can mend."""


class UserError(ValueError):
    """A wrong value from the user: the message names the thing, the value and the way out.

    Command lines print the message alone and exit with status 1; any other exception is a bug of ours.
    """
