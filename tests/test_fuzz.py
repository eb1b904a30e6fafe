"""Files of any origin: whatever is in them, a reader gives a valid result or our own error, and does nothing else.

Thousands of damaged files are read in processes of their own, which have a gibibyte beyond what they begin with and
note every event of Python's audit log (processes, sockets, files written, imports, code): see `fuzzing_child`. The
generator is seeded. For longer runs: AVS_FUZZ_CASES=100000 AVS_FUZZ_SEED=7 pytest -m slow tests/test_fuzz.py. What a
process was at when it failed is kept, and the failure names the file.
"""

import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import fuzzing_seeds
import hostile_files
import pytest

from avs_jax import safe_pickle
from avs_jax.errors import InputError

SEED = int(os.environ.get("AVS_FUZZ_SEED", "0"))
GROUPS = {  # name -> kinds, and cases of each by default
    "torch": (("pickle", "zip", "legacy", "safetensors"), 220),
    "tables": (("s4", "ms3", "avss", "vpo", "single", "vggsound", "classes", "coco", "run"), 80),
    "pictures": (("png", "jpeg"), 150),
    "sound": (("wav", "flac", "ogg", "mp3"), 100),
    "video": (("video",), 120),
    "clips": (("record", "clips"), 100),
}
LONG = {"torch": 2000, "tables": 800, "pictures": 1200, "sound": 600, "video": 800, "clips": 500}
CRASHES = 5  # after which a kind is given up


@pytest.fixture(scope="module")
def seeds(tmp_path_factory):
    return fuzzing_seeds.write_all(tmp_path_factory.mktemp("seeds"))


def child(*args) -> tuple[list[dict], subprocess.CompletedProcess]:
    """The lines that a child prints, and how it ended."""
    here = Path(__file__).parent
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(here), str(here.parent)]), "MALLOC_ARENA_MAX": "2"}
    command = [sys.executable, str(here / "fuzzing_child.py"), *map(str, args)]
    ended = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    return [json.loads(line) for line in ended.stdout.splitlines() if line.startswith("{")], ended


def fuzz(seeds: Path, kinds, count: int) -> tuple[dict[str, int], list[str]]:
    """(how many files had which outcome, failures) over `count` mutants of every kind."""
    out = Path(tempfile.mkdtemp(prefix="avs_jax-fuzz-"))  # stays if something fails
    totals, failures = {}, []
    todo = [(kind, 0) for kind in kinds]
    crashes = 0
    while todo and crashes < CRASHES:
        kind, first = todo[0]
        together = [k for k, begin in todo if begin == 0] if first == 0 else [kind]
        lines, ended = child("mutants", seeds, out, ",".join(together), SEED, first, count - first)
        done = [line for line in lines if "done" in line]
        for line in done:
            for name in ("read", "refused"):
                totals[name] = totals.get(name, 0) + line.get(name, 0)
        failures += [f"{line['what']} ({line.get('file', '')})" for line in lines if "what" in line]
        todo = [entry for entry in todo if entry[0] not in together[: len(done)]]
        if len(done) < len(together):
            crashes += 1
            kind = together[len(done)]
            at = out / kind / "case"
            if not at.exists():
                failures.append(f"{kind}: the process did not begin:\n{ended.stderr[-1500:]}")
                break
            case, name = at.read_text().split(" ", 1)
            kept = out / f"crash-{kind}-{SEED}-{case}-{Path(name).name}"
            kept.write_bytes((out / kind / name).read_bytes())
            failures.append(f"{kind}: the process ended with {ended.returncode} ({kept}):\n{ended.stderr[-1500:]}")
            todo = [(kind, int(case) + 1), *(entry for entry in todo if entry[0] != kind)]
    if not failures:
        shutil.rmtree(out)
    return totals, failures


@pytest.mark.parametrize("group", GROUPS)
def test_mutants(seeds, group):
    kinds, count = GROUPS[group]
    totals, failures = fuzz(seeds, kinds, count)
    assert not failures, "\n".join(failures)
    assert totals["read"] + totals["refused"] == count * len(kinds)
    assert totals["read"] > 10 and totals["refused"] > 10  # damage that matters, and not only such


@pytest.mark.slow
@pytest.mark.parametrize("group", GROUPS)
def test_many_mutants(seeds, group):
    kinds, count = GROUPS[group][0], LONG[group]
    if "AVS_FUZZ_CASES" in os.environ:
        count = int(os.environ["AVS_FUZZ_CASES"]) * LONG[group] // sum(len(GROUPS[g][0]) * n for g, n in LONG.items())
    _, failures = fuzz(seeds, kinds, count)
    assert not failures, "\n".join(failures)


@pytest.fixture(scope="module")
def verdicts(tmp_path_factory):
    """Row -> (verdict, text), of all hostile files."""
    folder = tmp_path_factory.mktemp("hostile")
    hostile_files.write_all(folder)
    return {line["row"]: (line["verdict"], line["text"]) for line in child("rows", folder, folder)[0]}


@pytest.mark.parametrize("name", hostile_files.ROWS)
def test_hostile_files(verdicts, name):
    verdict, text = verdicts.get(name, ("crashed", ""))
    words = hostile_files.ROWS[name][3]
    assert verdict == ("refused" if words else "read"), text
    assert words in text, text


def test_steps_of_a_pickle_are_counted():
    raw = b"\x80\x02" + b"N0" * 100 + b"N."
    assert safe_pickle.load(io.BytesIO(raw), "x") is None
    with pytest.raises(InputError, match="steps in a pickle"):
        safe_pickle.load(io.BytesIO(raw), "x", budget=safe_pickle.Budget(opcodes=200))


def test_the_harness_tells(tmp_path):
    """Readers that do what must not be done are found out."""
    kinds = ("starts a process", "writes", "imports", "takes memory", "raises", "crashes")
    rows = [(kind, kind, "rows.json") for kind in kinds]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    lines, ended = child("rows", tmp_path, tmp_path)
    found = {line["row"]: (line["verdict"], line["text"]) for line in lines}
    for kind, event in (("starts a process", "os.system"), ("writes", "open"), ("imports", "'this'")):
        assert found[kind][0] == "events" and event in found[kind][1]
    assert found["takes memory"] == ("another error", "MemoryError: ")
    assert found["raises"] == ("another error", "KeyError: 'x'")
    assert "crashes" not in found and ended.returncode < 0 and (tmp_path / "case").read_text() == "crashes rows.json"
