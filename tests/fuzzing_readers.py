"""What is done with damaged files of every kind: mutators and readers by the kind of seeds."""

import contextlib
import json
from itertools import islice
from pathlib import Path

import fuzzing
import fuzzing_media
import fuzzing_torch
import numpy as np

from avs_jax import config, torch_files
from avs_jax.data import audio, clip_bytes, images, media
from avs_jax.data.clip import validate
from avs_jax.data.prepare import vpo_coco, vpo_masks, vpo_sounds
from avs_jax.data.prepare.sound import read_stereo
from avs_jax.data.prepare.vpo_rejections import Rejections
from avs_jax.data.sources import (
    avsbench,
    avsbench_semantic,
    avsbench_table,
    create_source,
    packed_index,
    single_plus,
    vpo,
)
from avs_jax.errors import InputError
from avs_jax.prediction.inputs import read_image
from avs_jax.weights import files

FRAMES, BLOCKS = 200, 2000  # of a video and its sound that are looked at


def touch(array: np.ndarray) -> None:
    """The ends of an array, which a wrong view would fault at."""
    assert isinstance(array, np.ndarray)
    if array.size:
        _ = array[(0,) * array.ndim], array[(-1,) * array.ndim]


def read_pickle(path):
    touch(torch_files.read_torch_pickle(path))


def read_log_mel(path):
    values = avsbench._read_log_mel(path, (2, 8, 4))
    assert values.shape == (2, 8, 4) and values.dtype == np.float32 and np.isfinite(values).all()


def read_weights(path):
    contents = files.read_file(path)
    assert contents.tensors
    for array in contents.tensors.values():
        touch(array)


def read_picture(path):
    readers = (
        lambda: images.read_frame(path),
        lambda: images.read_frame(path, (24, 32)),
        lambda: images.read_mask(path),
        lambda: images.read_mask(path, (16, 16), True),
        lambda: images.read_values(path),
        lambda: images.read_fitted(path, (16, 16), "crop"),
        lambda: images.read_colours(path, (16, 16), "squash"),
        lambda: read_image(path),
    )
    each(readers)


def each(readers):
    """Calls all of the readers; our own error only where every one of them raises it."""
    last, count = None, 0
    for read in readers:
        try:
            read()
            count += 1
        except InputError as error:
            last = error
    if not count:
        raise last


def read_sound(path):
    samples, rate = audio.read_audio(path)
    assert samples.dtype == np.float32 and samples.ndim == 2 and samples.size and np.isfinite(samples).all()
    heard = audio.front_end("waveform", seconds=1.0)(samples, rate, 1)
    assert heard.shape == (1, 16000) and heard.dtype == np.float32


def read_track(path):
    assert media.probe_sound(path).channels > 0
    for block in islice(media.read_audio_stream(path), BLOCKS):
        assert block.dtype == np.float32 and block.size < 1 << 22


def read_film(path):
    def frames():
        for frame in islice(media.read_frames(path), FRAMES):
            image = frame.rgb()
            assert image.dtype == np.uint8 and image.shape[2] == 3 and frame.time >= 0

    def sound():
        info = media.probe(path, need_sound=True)
        assert info.num_frames > 0 and info.duration > 0 and info.fps > 0
        for block in islice(media.read_audio_stream(path, origin=info.origin, channels=2), BLOCKS):
            assert block.dtype == np.float32
        for block in islice(read_stereo(info), BLOCKS):
            assert block.dtype == np.int16

    each((lambda: media.probe(path), frames, sound, lambda: read_track(path)))


def read_record(path):
    fields = clip_bytes.decode(path.read_bytes(), str(path))[1]
    for array in fields.values():
        touch(array)


SOURCES = {
    "s4": lambda root: create_source("avsbench", root=root, setting="s4", image_size=16, resampler="soxr_hq"),
    "avss": lambda root: create_source("avsbench", root=root, setting="avss", image_size=(24, 40), resampler="soxr_hq"),
    "single": lambda root: create_source("single_plus", root=root),
    "packed": lambda root: create_source("packed", root=root),
}


def read_clips(path):
    """Every clip of the data set that a file belongs to, and what its check says of each."""
    root = next(folder for folder in path.parents if folder.parent.name == "clips")
    source, refused = SOURCES[root.name](root), None
    for index in range(len(source)):
        try:
            validate(source[index], num_classes=len(source.class_names))
        except InputError as error:
            refused = error
        if hasattr(source, "problems"):
            assert all(isinstance(problem, InputError) for problem in source.problems(index))
    if refused is not None:
        raise refused


def damage_tree(rng, data, others):
    """By the kind of file. Shards keep their length and indices their checksum, which are checked first."""
    name = next(name for name, content in others if content is data)
    same = [content for other, content in others if Path(other).suffix == Path(name).suffix]
    if name.endswith("index.json") and rng.random() < 0.8:
        changed = fuzzing.jsoned(rng, data, same)
        with contextlib.suppress(ValueError, TypeError, AttributeError, KeyError, RecursionError):  # still an index
            tree = json.loads(changed)
            tree.pop("checksum")
            return packed_index.write(tree)
        return changed
    by_suffix = {
        ".png": fuzzing_media.png,
        ".jpg": fuzzing_media.jpeg,
        ".wav": fuzzing_media.riff,
        ".pkl": fuzzing_torch.pickled,
        ".csv": fuzzing.table,
        ".json": fuzzing.jsoned,
        ".array_record": fuzzing.same_length,
    }
    return by_suffix[Path(name).suffix](rng, data, same)


def read_coco(path):
    def pictures():
        rejected = Rejections()
        rules = vpo_coco.Rules(min_area=0.0, several=True, fold_person=True)
        for picture in vpo_coco.read_pictures(path, rules, {}, rejected):
            for item in vpo_coco.objects_of(picture):
                with contextlib.suppress(vpo_masks.BadMask):
                    assert vpo_masks.decode(item.segmentation, picture.size).shape == picture.size

    each((pictures, lambda: vpo_coco.read_captions([path])))


def read_vpo(path):
    each([lambda s=s: vpo.read_table(path, s, "train", False, True) for s in vpo.SETTINGS])


S4, MS3 = avsbench.LAYOUTS["s4"].columns, avsbench.LAYOUTS["ms3"].columns
AVSS, LABELS = ("uid", "split", "label"), ("v1s", "v1m", "v2")
KINDS = {  # kind of seeds -> mutator, reader
    "pickle": (fuzzing_torch.pickled, read_pickle),
    "zip": (fuzzing_torch.zipped, read_weights),
    "legacy": (fuzzing_torch.rows_of_pickles, read_weights),
    "safetensors": (fuzzing_torch.safetensors, read_weights),
    "png": (fuzzing_media.png, read_picture),
    "jpeg": (fuzzing_media.jpeg, read_picture),
    "wav": (fuzzing_media.riff, read_sound),
    "flac": (fuzzing_media.flac, read_sound),
    "ogg": (fuzzing_media.ogg, read_sound),
    "mp3": (fuzzing.generic, read_sound),
    "video": (fuzzing_media.video, read_film),
    "s4": (fuzzing.table, lambda path: avsbench_table.read_table(path, S4, "train")),
    "ms3": (fuzzing.table, lambda path: avsbench_table.read_table(path, MS3, "train")),
    "avss": (fuzzing.table, lambda path: avsbench_table.read_table(path, AVSS, "train", LABELS)),
    "vpo": (fuzzing.table, read_vpo),
    "single": (fuzzing.table, lambda path: single_plus.read_table(path, "train", True)),
    "vggsound": (fuzzing.table, lambda path: vpo_sounds.read_table(path, Rejections())),
    "classes": (fuzzing.jsoned, avsbench_semantic.read_classes),
    "coco": (fuzzing.jsoned, read_coco),
    "run": (fuzzing.jsoned, config.load),
    "record": (fuzzing.generic, read_record),
    "clips": (damage_tree, read_clips),
}
READERS = {kind: read for kind, (_, read) in KINDS.items()} | {  # and of hostile files
    "fitted": lambda path: images.read_fitted(path, (64, 64), "crop"),
    "probe": media.probe,
    "sound of a film": lambda path: list(islice(media.read_audio_stream(path), BLOCKS)),
    "instances": lambda path: vpo_coco.read_pictures(path, vpo_coco.Rules(), {}, Rejections()),
}
