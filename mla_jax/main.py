"""The command line, and nothing else: python -m mla_jax.main --config configs/mla_rope.py --workdir runs/mla_rope

Exit codes: EXIT_CODES below, as --help prints them.
"""

import os
import select
import sys
from typing import TextIO

from mla_jax import phases  # noqa: F401 - first, so that its clock counts the imports
from mla_jax.errors import UserError, out_of_memory, unusable

EXIT_CODES = {
    0: "done, or stopped on request with a checkpoint",
    1: "what reads the output has gone (`| head`), or an error in mla_jax, with its traceback",
    2: "bad input, or too much for the device's memory: one sentence on stderr says what and what to do",
    3: "the loss stopped being a number",
    4: "another process of the run was lost",
    130: "interrupted where there was nothing to save",
}


def main(argv: list[str]) -> int:
    """Run one command line (argv[0] is the program) and return its exit code."""
    # XLA's C++ logs at these levels speak to developers of XLA.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    try:
        from mla_jax import cli

        return cli.run(argv)
    except UserError as error:
        print(f"mla_jax: {error}", file=sys.stderr)
        return 2
    except MemoryError as error:
        print(f"mla_jax: this machine has too little memory ({error}): lower batch sizes or sizes.", file=sys.stderr)
        return 2
    except PermissionError as error:
        if error.filename is None:
            raise
        print(f"mla_jax: {unusable(error)}", file=sys.stderr)
        return 2
    except RuntimeError as error:  # JaxRuntimeError is one; importing jax here would cost --help a second
        reason = out_of_memory(error)
        if reason is None:
            raise
        print(
            f"mla_jax: the device has too little memory ({reason}): in training raise --config.train.microbatches, "
            "lower --config.train.batch_size or --config.train.seq_len, or choose a smaller --config.model; in "
            "sampling ask for fewer or shorter stories at a time.",
            file=sys.stderr,
        )
        return 2
    except KeyboardInterrupt:
        print("mla_jax: interrupted; nothing was left half-written.", file=sys.stderr)
        return 130


def console_main() -> None:
    """The console script `mla-jax`."""
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="replace")  # stories have characters that not every terminal can write
    try:
        code = _main_and_flush()
    except BrokenPipeError:
        gone = [stream for stream in (sys.stdout, sys.stderr) if _has_no_reader(stream)]
        if not gone:
            raise  # of another pipe or connection
        for stream in gone:  # or Python would complain of it once more when it ends
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        sys.exit(1)
    if code == 130:
        # Threads that were interrupted while compiling or reading crash an orderly exit.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def _main_and_flush() -> int | str | None:
    """`main`'s exit code, once all that it printed has been read or has a reader. Raises BrokenPipeError."""
    try:
        code = main(sys.argv)
    except SystemExit as leaving:  # after --help
        code = leaving.code
    sys.stdout.flush()
    return code


def _has_no_reader(stream: TextIO) -> bool:
    poll = select.poll()
    poll.register(stream, select.POLLERR)
    return bool(poll.poll(0))


if __name__ == "__main__":
    console_main()
