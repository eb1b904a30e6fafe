"""How every command starts: flags parsed, errors told in one line, the compilation cache switched on."""

import argparse
import contextlib
import json
import logging as std_logging
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence

from avs_jax import overrides
from avs_jax.errors import InputError, TrainingError, nearest


def run(main: Callable[[], int | None]) -> None:
    """Parses the flags, runs `main()` and exits with its status.

    Bad input, a misspelt flag or configuration field included, exits with 2, a run that cannot go on with 1; both are
    told in one line. Call it only under `if __name__ == "__main__"`: data processes import the main module again.
    """
    from absl import app, flags, logging

    def parse(argv):
        config = None
        try:
            recipe = _recipe(argv)
            config = None if recipe is None else read_recipe(recipe)
            argv, options = overrides.take(argv, config)
            sys.argv = argv  # where config_flags looks for the fields that are changed
            rest = flags.FLAGS(argv)
            overrides.apply(options, flags.FLAGS)
            return rest
        except (flags.Error, AttributeError, KeyError, TypeError, ValueError, OSError, SyntaxError) as error:
            _leave(_explain(error, argv, config), 2)

    def guarded(argv):
        if not flags.FLAGS["verbosity"].present:  # Orbax tells every step of a save
            logging.set_verbosity(logging.ERROR)
            std_logging.getLogger("avs_jax").setLevel(std_logging.WARNING)
        if argv[1:]:
            raise InputError("command line", expected="--flag=value", found=repr(argv[1]))
        with interruptible("interrupted"):
            return main()

    app.run(lambda argv: status_of(lambda: guarded(argv)), flags_parser=parse)


def status_of(main: Callable[[], int | None]) -> int:
    """Runs a command; its exit status. What went wrong is told in one line: bad input (2), a run that cannot go on or a
    file that cannot be read or written (1)."""
    try:
        return main() or 0
    except InputError as error:
        message, status = str(error), 2
    except TrainingError as error:
        message, status = str(error), 1
    except OSError as error:  # of files; others have no name and are not the user's
        if error.filename is None:
            raise
        message, status = f"{error.filename}: {error.strerror or error}", 1
    print(f"error: {message}", file=sys.stderr, flush=True)
    return status


@contextlib.contextmanager
def interruptible(message: str, cleanup: Callable[[], object] = lambda: None) -> Iterator[None]:
    """A block that Ctrl-C and SIGTERM end at once, and the process with it: cleanup, the message, status 128 + signal.

    A KeyboardInterrupt is not up to that: raised in a callback of a library it is printed there and forgotten, and what
    devices and threads still do meets an interpreter that is shutting down.
    """

    def leave(number, frame):
        for other in (signal.SIGINT, signal.SIGTERM):
            signal.signal(other, signal.SIG_IGN)
        try:
            cleanup()
            sys.stdout.flush()
        finally:
            os.write(2, f"\n{message}\n".encode())
            os._exit(128 + number)

    if threading.current_thread() is not threading.main_thread():  # Python allows handlers nowhere else
        yield
        return
    previous = {number: signal.signal(number, leave) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


class Parser(argparse.ArgumentParser):
    """Refuses a bad command line as all bad input is refused: with an InputError, told in one line."""

    def __init__(self, prog: str, **options):
        super().__init__(prog, allow_abbrev=False, **options)
        self._given = ()

    def parse_known_args(self, args=None, namespace=None):
        self._given = sys.argv[1:] if args is None else list(args)
        return super().parse_known_args(args, namespace)

    def error(self, message):
        valid = [option for action in self._actions for option in action.option_strings]
        names = (given.partition("=")[0] for given in self._given if given.startswith("--"))
        unknown = next((n for n in names if n not in valid and not n.startswith("--data.")), None)
        hint = "" if unknown is None else f"There is no {unknown}. {nearest(unknown, valid)}"  # perhaps what is missing
        raise InputError("command line", expected="arguments as --help lists them", found=message, hint=hint)


def add_option(parser: argparse.ArgumentParser, name: str, kind: type, text: str) -> None:
    """Adds --<name>, with dashes too, of kind bool (a switch), int or str."""
    options = {"action": "store_true"} if kind is bool else {"type": kind}
    parser.add_argument(*dict.fromkeys((f"--{name.replace('_', '-')}", f"--{name}")), help=text, **options)


def at_least(least: int) -> Callable[[str], int]:
    """A `type` of argparse's arguments: whole numbers that are not smaller."""

    def number(text):
        if int(text) < least:
            raise ValueError
        return int(text)

    number.__name__ = f"whole number of at least {least}"  # argparse's message names the type by it
    return number


def data_options(items: Sequence[str], parser: argparse.ArgumentParser) -> dict:
    """{option: value} of `--data.option=value`; numbers, true, false, null and JSON lists as such, the rest as text.

    Args:
      items: the arguments that `parser` did not know.
      parser: whose options are named where one was misspelt.
    Raises:
      InputError: an argument of another form.
    """
    options = {}
    for item in items:
        name, sep, text = item.partition("=")
        if not (name.startswith("--data.") and sep):
            valid = [option for action in parser._actions for option in action.option_strings]
            command = parser.prog.removeprefix("python -m avs_jax.")
            raise InputError(
                f"command line, '{item}'",
                expected=f"an argument of {command}, or --data.<option>=<value>",
                found="another",
                hint=nearest(name, valid),
            )
        try:
            value = json.loads(text)
        except ValueError:
            value = {"True": True, "False": False, "None": None}.get(text, text)
        options[name.removeprefix("--data.")] = value
    return options


def config_flag():
    """Defines `--config=file.py:arguments` with `--config.field=value` overrides, locked against typos."""
    from ml_collections import config_flags

    help_text = "A recipe: file.py, or file.py:name=value,..."
    return config_flags.DEFINE_config_file("config", None, help_text, lock_config=True)


def read_recipe(text: str):
    """The config of "file.py" or "file.py:name=value,...", before single fields are changed.

    Raises:
      InputError: no such file, or no recipe in it; what went wrong in its code is told with the line.
    """
    import runpy

    from ml_collections import ConfigDict

    from avs_jax.config_check import check_structure

    path, colon, arg = text.partition(":")
    if not os.path.isfile(path):
        raise InputError("--config", expected="the file of a recipe", found=repr(path),
                         hint="Recipes live in configs/.")  # fmt: skip
    try:
        get_config = runpy.run_path(path).get("get_config")
        config = None if get_config is None else get_config(arg) if colon else get_config()
    except InputError:
        raise
    except (Exception, SystemExit) as error:  # its author's, whatever it is
        found = " ".join(f"{type(error).__name__}: {error}".split())
        raise InputError(f"--config, {path}{_line(error, path)}", expected="a recipe that runs", found=found) from error
    if get_config is None:
        raise InputError("--config", expected="a recipe, which defines get_config", found=f"none in {path!r}")
    if not isinstance(config, ConfigDict):
        expected = "a get_config that returns what it made of avs_jax.config.defaults()"
        found = "None" if config is None else f"a {type(config).__name__}"
        raise InputError(f"--config, {path}", expected=expected, found=found)
    check_structure(config)
    return config


def _line(error: BaseException, path: str) -> str:
    """Where in the file it went wrong: ", line 5", or nothing."""
    if isinstance(error, SyntaxError):
        return f", line {error.lineno}" if error.lineno else ""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == path]
    return f", line {lines[-1]}" if lines else ""


def enable_compile_cache() -> None:
    """Keeps compiled programs between runs, in JAX_COMPILATION_CACHE_DIR or ~/.cache/avs_jax."""
    import jax

    if not jax.config.jax_compilation_cache_dir:
        jax.config.update("jax_compilation_cache_dir", os.path.join(os.path.expanduser("~"), ".cache", "avs_jax"))


def _recipe(argv) -> str | None:
    """The value of --config."""
    for flag, value in zip(argv, [*argv[1:], ""], strict=True):
        name, equals, text = flag.partition("=")
        if flag.startswith("-") and name.lstrip("-") == "config":
            return text if equals else value
    return None


def _explain(error: Exception, argv, config) -> str:
    """What the user got wrong, in one line, behind the library's own way of telling."""
    cause = error
    while cause is not None:  # an InputError of the recipe itself
        if isinstance(cause, InputError):
            return str(cause)
        cause = cause.__cause__ or cause.__context__
    return str(_unknown_field(argv, config) or "") or " ".join(str(error).split()) or type(error).__name__


def _unknown_field(argv, config) -> InputError | None:
    """The first --config.<field> that the recipe does not have."""
    if config is None:
        return None
    for flag in argv:
        if not flag.lstrip("-").startswith("config."):
            continue
        section, path = config, flag.lstrip("-").partition("=")[0].split(".")[1:]
        for depth, name in enumerate(path):
            if not hasattr(section, "items") or name not in section:
                return _refuse(config, section, path, depth)
            section = section[name]
    return None


def _refuse(config, section, path, depth) -> InputError:
    names = list(section) if hasattr(section, "items") else []
    elsewhere = [p for p in _paths(config) if p.split(".")[-1] == path[-1]]  # the right field in the wrong section
    prefix = "".join(f"{p}." for p in path[:depth])
    hint = f"Did you mean '--config.{elsewhere[0]}'?" if elsewhere else nearest(path[depth], names) if names else ""
    where = f"section '{prefix[:-1]}'" if prefix else "the recipe"
    return InputError(f"--config.{'.'.join(path)}", expected=f"a field of {where}", found=repr(path[depth]), hint=hint)


def _paths(section, prefix=""):
    for name in section:
        if hasattr(section[name], "items"):
            yield from _paths(section[name], f"{prefix}{name}.")
        else:
            yield prefix + name


def _leave(message, status: int) -> None:
    print(f"error: {message}", file=sys.stderr, flush=True)
    sys.exit(status)
