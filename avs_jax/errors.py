"""The one error for bad input: it names the thing, what was expected, what was found and what to do."""

LONGEST = 600  # characters of a line that a message repeats; a damaged table may hold one of megabytes


class InputError(ValueError):
    """Bad input from a user: a file, a field, an option.

    Commands print it as one line and exit with status 2; library code raises it.

    Args:
      where: the file, field or option at fault, as the user would write it.
      expected: what a valid input looks like.
      found: what is there instead.
      hint: what to do about it (optional).
    """

    def __init__(self, where: object, *, expected: str, found: str, hint: str = ""):
        self.where, self.expected, self.found, self.hint = str(where), expected, _shortened(found), hint
        super().__init__(self.__str__())

    def __str__(self) -> str:
        text = f"{self.where}: expected {self.expected}; found {self.found}"
        if not self.hint:
            return text
        return f"{text}{self.hint}" if text.endswith("\n") else f"{text}. {self.hint}"  # after a report of many lines

    def __reduce__(self):  # keyword-only arguments do not survive BaseException's own pickling (data workers)
        return _rebuild, (self.where, self.expected, self.found, self.hint)


def _shortened(text: str) -> str:
    """The text, the middle of lines that no one would read left out."""
    if len(text) <= LONGEST:
        return text
    half = LONGEST // 2
    lines = (line if len(line) <= LONGEST else f"{line[:half]} ... {line[-half:]}" for line in text.split("\n"))
    return "\n".join(lines)


def _rebuild(where, expected, found, hint):
    return InputError(where, expected=expected, found=found, hint=hint)


def nearest(name: str, valid) -> str:
    """A hint naming the closest valid name, and all of them when they are few."""
    import difflib

    valid = [str(v) for v in valid]
    close = difflib.get_close_matches(str(name), valid, n=1, cutoff=0.5)
    names = f"Valid names: {', '.join(sorted(valid))}." if len(valid) <= 40 else ""
    return " ".join(filter(None, [f"Did you mean '{close[0]}'?" if close else "", names]))


class TrainingError(RuntimeError):
    """A run that cannot go on although its input was well-formed; commands print it as one line and exit with 1."""


def check_options(section: str, owner: str, options, valid) -> None:
    """Refuses the first of `options` that `owner` does not have.

    Raises:
      InputError: naming it as `section`.option, and the nearest valid one.
    """
    for option in options:
        if option not in valid:
            raise InputError(
                f"{section}.{option}", expected=f"an option of {owner}", found=repr(option), hint=nearest(option, valid)
            )
