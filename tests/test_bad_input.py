"""Bad input of every kind: each row breaks something valid, does with it what a user would, and expects one telling
error. Nothing crashes, nothing is half-written: the folder is afterwards as it was before."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import bad_input_avsbench
import bad_input_avss
import bad_input_commands
import bad_input_config
import bad_input_media
import bad_input_methods
import bad_input_pictures
import bad_input_runs
import pytest
from bad_input import Row, check_told, contents
from bad_input_worlds import Worlds
from forked_commands import Commands

from avs_jax.errors import InputError

MODULES = (
    bad_input_avsbench, bad_input_avss, bad_input_pictures, bad_input_methods, bad_input_config, bad_input_runs,
    bad_input_media, bad_input_commands,
)  # fmt: skip
ROWS = [row for module in MODULES for row in module.ROWS]


@pytest.fixture(scope="module")
def commands():
    server = Commands()
    yield server
    server.close()


@pytest.fixture(scope="module")
def worlds(tmp_path_factory, commands):
    return Worlds(tmp_path_factory.mktemp("worlds"), commands)


def test_rows_have_names_of_their_own():
    names = [row.fault for row in ROWS]
    assert len(names) == len(set(names)) >= 80


@pytest.mark.parametrize("row", ROWS, ids=[row.fault for row in ROWS])
def test_bad_input(row: Row, worlds, commands, tmp_path, monkeypatch):
    here = worlds(row.world, tmp_path / "here")
    row.make(here)
    before = contents(here)
    if isinstance(row.attempt, str):
        done = commands.run(*shlex.split(row.attempt), cwd=here)
        assert done.status == 2, done
        *others, last = done.err.splitlines()
        assert "Traceback" not in done.out + done.err
        assert last.startswith("error: ") and all(line.startswith("checkpoint ") for line in others), done.err
        check_told(last, row)
    else:
        monkeypatch.chdir(here)
        with pytest.raises(InputError) as caught:
            row.attempt(here)
        assert caught.value.where and caught.value.expected and caught.value.found
        check_told(str(caught.value), row)
    assert contents(here) == before


@pytest.mark.parametrize("command", ["train", "evaluate", "predict", "explain", "check", "prepare", "weights"])
def test_a_command_started_as_users_do(command, tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", f"avs_jax.{command}", "--nonsense=1"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
