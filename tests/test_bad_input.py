"""Bad input of every kind: each row breaks something valid, does with it what a user would, and expects one telling
error. Nothing crashes, nothing is half-written: the folder is afterwards as it was before."""

import shlex

import bad_input_avsbench
import bad_input_avss
import bad_input_pictures
import pytest
from bad_input import Row, check_told, contents
from bad_input_worlds import Worlds
from forked_commands import Commands

from avs_jax.errors import InputError

MODULES = (bad_input_avsbench, bad_input_avss, bad_input_pictures)
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
        check_told(last, row.told)
    else:
        monkeypatch.chdir(here)
        with pytest.raises(InputError) as caught:
            row.attempt(here)
        assert caught.value.where and caught.value.expected and caught.value.found
        check_told(str(caught.value), row.told)
    assert contents(here) == before
