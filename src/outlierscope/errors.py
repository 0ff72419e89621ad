"""Errors that a user can mend, told in one line that says what is wrong and what to do."""


class UserError(Exception):
    """Wrong use or bad input; the command line prints its text as one line and exits with code 2.

    >>> str(UserError("no such file: my.txt"))
    'no such file: my.txt'
    """


class ProofError(Exception):
    """A model's computation contradicts what was proved or proposed about its anatomy."""
