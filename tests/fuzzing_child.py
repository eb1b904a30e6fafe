"""The process that reads damaged files, with little memory and under watch.

    python fuzzing_child.py mutants SEEDS OUT KIND SEED FIRST COUNT   reads mutants of the files SEEDS/KIND/*
    python fuzzing_child.py rows ROWS OUT                             reads the files that ROWS/rows.json lists

It prints lines of JSON, and writes which case it is at to OUT/case, so that a crash leaves it there.
"""

import contextlib
import faulthandler
import importlib
import json
import os
import random
import resource
import shutil
import sys
import warnings
from pathlib import Path

from fuzzing_readers import KINDS, READERS

from avs_jax.errors import InputError

# What is loaded on first use, so that no import is left that a file could have asked for.
LOADED = (
    "numpy.fft",
    "soxr",
    "safetensors.numpy",
    "ml_dtypes",
    "pycocotools.mask",
    "soundfile",
    "av.subtitles.stream",
    "difflib",
    "encodings.cp437",
    "encodings.idna",
    "encodings.utf_8_sig",
    "encodings.raw_unicode_escape",
    "encodings.unicode_escape",
    *(f"encodings.utf_{kind}" for kind in ("16", "16_be", "16_le", "32", "32_be", "32_le")),
    "avs_jax.config_check",
    "PIL.PngImagePlugin",
    "PIL.JpegImagePlugin",
    "PIL.BmpImagePlugin",
    "PIL.GifImagePlugin",
    "PIL.PpmImagePlugin",
    "PIL.MpoImagePlugin",
    "avs_jax.data.sources.packed",
    "array_record.python.array_record_module",
)
MEMORY = 1 << 30  # bytes of address space beyond what the process has when it begins
SECONDS = 60  # for one file; every one takes milliseconds
# --- what must not happen ---

_FORBIDDEN = (
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.spawn",
    "os.fork",
    "os.startfile",
    "subprocess.Popen",
    "pty.spawn",
    "socket.",
    "exec",
    "compile",
    "pickle.find_class",
    "ctypes.",
    "os.remove",
    "os.rename",
    "os.mkdir",
    "os.symlink",
    "os.link",
    "os.truncate",
    "os.putenv",
    "shutil.",
    "tempfile.",
    "urllib.",
    "marshal.load",
)


class Watch:
    """Notes every event of Python's audit log that reading data has no business with."""

    def __init__(self):
        self.seen, self.on = [], False
        sys.addaudithook(self._hook)

    def _hook(self, event, args):
        if not self.on or (event == "compile" and args[0] == b"_getframe()"):  # how Cython makes a traceback
            return
        written = event == "open" and ((isinstance(args[1], str) and set(args[1]) & set("wax+")) or (args[2] or 0) & 3)
        if written or event == "import" or event.startswith(_FORBIDDEN):
            self.seen.append(f"{event} {args!r:.200}")

    @contextlib.contextmanager
    def __call__(self):
        self.seen.clear()
        self.on = True
        try:
            yield
        finally:
            self.on = False


def outcome(read, path: Path, watch: Watch) -> tuple[str, str]:
    """("read" or "refused", our error's text), or another word and what went wrong."""
    verdict, text = "read", ""
    try:
        with watch():
            read(path)
    except InputError as error:
        verdict, text = "refused", str(error)
        # "Cannot allocate memory" is FFmpeg's word for a declared size above its own limit; nothing was taken.
        if any(word in text for word in ("MemoryError", "ut of memory")):
            verdict = "out of memory"
        elif len(text) > 4000:
            verdict = "endless message"
    except BaseException as error:
        verdict, text = "another error", f"{type(error).__name__}: {error!s:.300}"
    return ("events", f"{watch.seen[:5]}") if watch.seen else (verdict, text)


def mutant(kind: str, seeds: list[tuple[str, bytes]], seed: int, case: int) -> tuple[str, bytes]:
    """(name of the seed file, damaged bytes) of one case."""
    rng = random.Random(f"{seed}/{kind}/{case}")
    suffix = rng.choice(sorted({Path(name).suffix for name, _ in seeds}))
    name, data = rng.choice([seed for seed in seeds if seed[0].endswith(suffix)])
    others = seeds if kind == "clips" else [other for _, other in seeds]
    return name, KINDS[kind][0](rng, data, others)


def limit_memory() -> None:
    limit = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, resource.getrlimit(resource.RLIMIT_AS)[1]))


@contextlib.contextmanager
def in_time():
    """The process ends, telling where it was, if this takes `SECONDS`."""
    faulthandler.dump_traceback_later(SECONDS, exit=True)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()


def say(**values) -> None:
    print(json.dumps(values), flush=True)


def read_mutants(root: Path, out: Path, kind: str, seed: int, first: int, count: int, watch: Watch) -> None:
    found = sorted(path for path in (root / kind).rglob("*") if path.is_file())
    seeds = [(path.relative_to(root / kind).as_posix(), path.read_bytes()) for path in found]
    read = KINDS[kind][1]
    shutil.copytree(root / kind, out, dirs_exist_ok=True)
    for name, _ in seeds:
        verdict, text = outcome(read, out / name, watch)
        if verdict != "read":
            say(case=-1, what=f"the undamaged {name}: {verdict} {text}")
    limit_memory()
    counts: dict[str, int] = {}
    for case in range(first, first + count):
        name, data = mutant(kind, seeds, seed, case)
        path = out / name
        path.write_bytes(data)
        (out / "case").write_text(f"{case} {name}")
        with in_time():
            verdict, text = outcome(read, path, watch)
        counts[verdict] = counts.get(verdict, 0) + 1
        if verdict not in ("read", "refused"):
            kept = out / f"failed-{kind}-{seed}-{case}-{path.name}"
            kept.write_bytes(data)
            say(case=case, what=f"{name}: {verdict}: {text}", file=str(kept))
        path.write_bytes(dict(seeds)[name])
    files = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    strays = [name for name in files - {"case", *dict(seeds)} if not name.startswith("failed-")]
    if strays:
        say(case=-1, what=f"files that were written: {strays}")
    say(done=count, peak=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10, **counts)


def read_rows(root: Path, out: Path, watch: Watch) -> None:
    rows = json.loads((root / "rows.json").read_text())
    limit_memory()
    for name, kind, file in rows:
        (out / "case").write_text(f"{name} {file}")
        with in_time():
            verdict, text = outcome(FAULTY.get(kind) or READERS[kind], root / file, watch)
        say(row=name, verdict=verdict, text=text)


def _import(path):
    import this  # noqa: F401


FAULTY = {  # readers as they must not be: what shows that the harness would tell
    "starts a process": lambda path: os.system("true"),
    "writes": lambda path: Path(f"{path}.new").write_text(""),
    "imports": _import,
    "takes memory": lambda path: bytearray(2 * MEMORY),
    "raises": lambda path: {}["x"],
    "crashes": lambda path: os.abort(),
}


def main(what: str, root: str, out: str, *rest: str) -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    warnings.simplefilter("ignore")
    for name in LOADED:
        importlib.import_module(name)
    watch = Watch()
    if what == "mutants":
        for kind in rest[0].split(","):
            folder = Path(out) / kind
            folder.mkdir(exist_ok=True)
            read_mutants(Path(root), folder, kind, *map(int, rest[1:4]), watch)
    else:
        read_rows(Path(root), Path(out), watch)


if __name__ == "__main__":
    main(*sys.argv[1:])
