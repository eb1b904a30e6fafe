"""What rows of bad input break: valid data sets, runs and files, each made once."""

import shutil
from pathlib import Path

import bad_input_avsbench
import bad_input_avss
import bad_input_pictures
from media_files import tone, write_video
from vpo_tree import write_coco, write_vggsound

RECIPE = """
from avs_jax import config


def get_config(arg=None):
    c = config.defaults()
    c.steps, c.batch_size = 2, 2
    c.method.update(name="method.py", nan_after=0, width=6)
    c.data.update(source="synthetic", image_size=32)
    c.data.train.length = 4
    c.data.eval.length = c.data.test.length = 2
    c.log.tensorboard = False
    return c
"""


def write_run(root: Path, commands) -> None:
    """A finished run of a small method, its recipe, its method's file, and a video."""
    (root / "recipe.py").write_text(RECIPE)
    shutil.copy(Path(__file__).parent / "recipes" / "small_method.py", root / "method.py")
    write_video(root / "clip.mp4", sound=tone(2, 16000), rate=16000, size=(32, 48))
    done = commands.run("train", "--config=recipe.py", "--workdir=run", cwd=root)
    assert done.status == 0, done


def write_raw(root: Path) -> None:
    """COCO's and VGGSound's folders."""
    write_coco(root / "coco", images=4)
    write_vggsound(root / "vggsound", per_class=1)


WORLDS = {
    "empty": lambda root: None,
    "run": write_run,
    "avsbench": bad_input_avsbench.write,
    "avss": bad_input_avss.write,
    "vpo": bad_input_pictures.write_vpo,
    "plus": bad_input_pictures.write_plus,
    "raw": write_raw,
}


class Worlds:
    """A fresh copy of a world at every call; each is made once, in a folder below `root`."""

    def __init__(self, root: Path, commands):
        self._root, self._commands = root, commands

    def __call__(self, name: str, target: Path) -> Path:
        made = self._root / name
        if not made.exists():
            made.mkdir()
            write = WORLDS[name]
            write(made, self._commands) if write is write_run else write(made)
        return Path(shutil.copytree(made, target))
