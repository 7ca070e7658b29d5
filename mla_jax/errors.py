"""The one error type that a user, not a developer, is meant to read."""


class UserError(ValueError):
    """Bad input, said in one sentence: which field or file, its value, the rule, the remedy.

    `main` prints the sentence on stderr and exits with code 2; nothing has been compiled or written by then.
    """
