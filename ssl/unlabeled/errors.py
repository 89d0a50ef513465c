"""The one exception that users see."""


class UserError(Exception):
    """Bad input from the user; the message says where, what and how to cure it, and is printed without a traceback."""
