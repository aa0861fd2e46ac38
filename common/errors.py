"""The error that a person can act on."""


class InputError(ValueError):
    """Bad input from a person: one sentence that names the file or value, what was expected and what to do.

    The command line prints the sentence without a traceback and ends with exit code 2.
    """
