"""Lines for a person. Nobody may be there to take them: a closed pipe, or a full disk behind it, ends no run."""

import contextlib
import sys


def say(text: str, *, error: bool = False) -> None:
    """Prints a line at once, to standard error if `error`."""
    with contextlib.suppress(OSError):
        print(text, file=sys.stderr if error else sys.stdout, flush=True)
