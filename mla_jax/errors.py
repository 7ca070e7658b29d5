"""The one error type that a user, not a developer, is meant to read, and what a device says when its memory is full."""


class UserError(ValueError):
    """Bad input, said in one sentence: which field or file, its value, the rule, the remedy.

    `main` prints the sentence on stderr and exits with code 2; nothing has been compiled or written by then.
    The values quoted in it may come from anywhere: line breaks and control characters are shown as escapes.
    """

    def __init__(self, sentence: str):
        super().__init__("".join(c if c.isprintable() else repr(c)[1:-1] for c in sentence))


def out_of_memory(error: Exception) -> str | None:
    """What an error says of memory that was asked for in vain, or None where it is another: XLA has several names."""
    text = str(error)
    for sign in ("RESOURCE_EXHAUSTED", "Out of memory", "out of memory"):
        if sign in text:
            return " ".join(text.split(sign, 1)[1].split()).strip(": .")[:160]
    return None
