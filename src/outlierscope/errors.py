"""Errors that a user can mend, told in one line that says what is wrong and what to do."""


class UserError(Exception):
    """Wrong use or bad input; the command line prints its text as one line and exits with code 2.

    >>> str(UserError("no such file: my.txt"))
    'no such file: my.txt'
    """


class ProofError(Exception):
    """A model's computation contradicts what was proved or proposed about its anatomy."""


def first_line(error: BaseException) -> str:
    """The first line of an error's text, without what follows it, for a message of one line.

    >>> first_line(ValueError("size 3\\ninstead of 4"))
    'size 3'
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
