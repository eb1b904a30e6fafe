"""Lines for a person. Nobody may be there to take them: a closed pipe, or a full disk behind it, ends no run."""

import contextlib
import sys

import jax


def say(text: str, *, error: bool = False) -> None:
    """Prints a line at once: progress by the first process, to standard output; an error by any, to standard error."""
    if not error and jax.process_index() != 0:
        return
    with contextlib.suppress(OSError):
        print(text, file=sys.stderr if error else sys.stdout, flush=True)
