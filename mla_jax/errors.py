"""The one error type that a user, not a developer, is meant to read, and what a device says when its memory is full."""

import sys
from collections.abc import Callable, Sequence


class UserError(ValueError):
    """Bad input, said in one sentence: which field or file, its value, the rule, the remedy.

    `main` prints the sentence on stderr and exits with code 2; nothing has been compiled or written by then.
    The values quoted in it may come from anywhere: line breaks and control characters are shown as escapes.
    """

    def __init__(self, sentence: str):
        super().__init__("".join(c if c.isprintable() else repr(c)[1:-1] for c in sentence))


def brief(error: BaseException, limit: int = 200, first_line: bool = False) -> str:
    """What a library's error says, on one line of at most `limit` characters; its type's name where it says nothing.

    first_line: leave out what follows (jaxlib and Orbax go on with their own internals).
    """
    lines = str(error).strip().splitlines()
    return " ".join(" ".join(lines[:1] if first_line else lines).split())[:limit] or type(error).__name__


def run_command(main: Callable[[Sequence[str]], int | None], arguments: Sequence[str] | None = None) -> int:
    """The exit code of a command line (`python -m mla_jax.x`): `main`'s, or 2 where it raises UserError.

    A file that is missing or closed is bad input too. arguments: without the program's name; default: this process's.
    `mla_jax.main` knows more errors than this one.
    """
    try:
        return main(sys.argv[1:] if arguments is None else arguments) or 0
    except UserError as error:
        print(f"mla_jax: {error}", file=sys.stderr)
        return 2
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError, PermissionError) as error:
        if error.filename is None:
            raise
        print(f"mla_jax: {unusable(error)}", file=sys.stderr)
        return 2


def unusable(error: OSError) -> str:
    """The sentence for a file that the system refuses."""
    closed = "change its permissions, or give another path" if isinstance(error, PermissionError) else "check the path"
    return f"{str(error.filename)!r} cannot be used ({error.strerror}): {closed}."


def out_of_memory(error: Exception) -> str | None:
    """What an error says of memory that was asked for in vain, or None where it is another: XLA has several names."""
    text = str(error)
    for sign in ("RESOURCE_EXHAUSTED", "Out of memory", "out of memory"):
        if sign in text:
            return " ".join(text.split(sign, 1)[1].split()).strip(": .")[:160]
    return None
