"""The one error type that a user, not a developer, is meant to read."""


class UserError(ValueError):
    """Bad input, said in one sentence: which field or file, its value, the rule, the remedy.

    `main` prints the sentence on stderr and exits with code 2; nothing has been compiled or written by then.
    The values quoted in it may come from anywhere: line breaks and control characters are shown as escapes.
    """

    def __init__(self, sentence: str):
        super().__init__("".join(c if c.isprintable() else repr(c)[1:-1] for c in sentence))
