"""AVSBench folders: layouts, partial labels, sound from pickle or wav, masks of every PIL mode."""

import pickle
import shutil

import numpy as np
import pytest
from avsbench_tree import RATE, save, write_tree
from PIL import Image

import avs_jax
from avs_jax.data import images
from avs_jax.data.audio import read_audio, vggish_log_mel
from avs_jax.data.clip import IGNORE, validate
from avs_jax.data.sources.avsbench import AVSBenchSource
from avs_jax.data.sources.subset import Subset
from avs_jax.errors import InputError

SIZE = 32


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("avsbench_data")
    write_tree(root, "s4", SIZE, "both")
    return write_tree(root, "ms3", SIZE, "both")


@pytest.mark.parametrize("setting", ["s4", "ms3"])
@pytest.mark.parametrize("split, count", [("train", 3), ("val", 2), ("test", 2)])
def test_every_clip_is_a_valid_record(root, setting, split, count):
    source = AVSBenchSource(root, setting, split, SIZE)
    assert len(source) == count and len(set(source.ids)) == count
    for i in range(count):
        clip = validate(source[i])
        assert clip["id"] == source.ids[i] and clip["frames"].shape == (5, SIZE, SIZE, 3)
        assert clip["audio"].shape == source.front_end.shape(5)
        np.testing.assert_array_equal(source.audio(i), clip["audio"])
        labelled = 1 if (setting, split) == ("s4", "train") else 5
        np.testing.assert_array_equal(clip["labelled"], np.arange(5) < labelled)
        assert (clip["labels"][labelled:] == IGNORE).all()
        for k in range(labelled):  # the tree's squares: brighter than everything around them
            bright = clip["frames"][k].min(-1) >= 100
            np.testing.assert_array_equal(clip["labels"][k], bright)
            assert set(np.unique(clip["labels"][k])) == {0, 1}


def test_either_folder_is_a_root(root):
    for setting, folder in (("s4", "Single-source"), ("ms3", "Multi-sources")):
        whole = AVSBenchSource(root, setting, "val", SIZE)
        own = AVSBenchSource(str(root / folder), setting, "val", SIZE)
        assert whole.fingerprint() == own.fingerprint()
        np.testing.assert_array_equal(whole[1]["frames"], own[1]["frames"])


@pytest.mark.parametrize("setting", ["s4", "ms3"])
def test_sound_from_pickle_and_from_wav_agree(root, setting):
    by = {sound: AVSBenchSource(root, setting, "val", SIZE, sound=sound) for sound in ("auto", "log_mel", "wav")}
    np.testing.assert_array_equal(by["auto"].audio(1), by["log_mel"].audio(1))
    # 16-bit samples, of an otherwise silent band, against the float wave
    assert 0 < np.abs(np.exp(by["wav"].audio(1)) - np.exp(by["log_mel"].audio(1))).max() < 1e-2


def test_auto_takes_the_wav_where_there_is_no_pickle(root, tmp_path):
    shutil.copytree(root / "Multi-sources", tmp_path / "Multi-sources")
    pickled = tmp_path / "Multi-sources/ms3_data/audio_log_mel/val/valclip_0.pkl"
    pickled.unlink()
    source = AVSBenchSource(tmp_path, "ms3", "val", SIZE)
    wave, rate = read_audio(tmp_path / "Multi-sources/ms3_data/audio_wav/val/valclip_0.wav")
    assert rate == RATE
    np.testing.assert_array_equal(source.audio(0), vggish_log_mel(wave, rate))


def test_source_protocol(root):
    source = avs_jax.create_source("avsbench", root=str(root), setting="ms3", split="val", image_size=SIZE)
    assert source.class_names == ("background", "sounding") and source.num_frames == 5
    assert source.image_size == (SIZE, SIZE) and source.categories == ("", "")
    copy = pickle.loads(pickle.dumps(source))
    assert copy.fingerprint() == source.fingerprint()
    for field, value in source[0].items():
        np.testing.assert_array_equal(copy[0][field], value)
    other = AVSBenchSource(root, "s4", "val", SIZE)
    assert other.categories == ("dog_barking", "playing_violin")
    assert other.fingerprint() != source.fingerprint()
    with pytest.raises(IndexError):
        source[2]
    with pytest.raises(IndexError):
        source[-1]


def test_byte_order_mark_and_blank_lines_are_harmless(root, tmp_path):
    shutil.copytree(root / "Single-source", tmp_path / "Single-source")
    table = tmp_path / "Single-source/s4_meta_data.csv"
    truth = AVSBenchSource(tmp_path, "s4", "train", SIZE).ids
    text = table.read_text().replace("\n", "\r\n\r\n").replace(",train", " , train ")
    table.write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert AVSBenchSource(tmp_path, "s4", "train", SIZE).ids == truth


def test_more_masks_than_may_be_used_are_left_alone(root, tmp_path):
    shutil.copytree(root / "Single-source", tmp_path / "Single-source")
    mask = tmp_path / "Single-source/s4_data/gt_masks/train/dog_barking/trainclip_0_10000/trainclip_0_10000_1.png"
    shutil.copy(mask, mask.with_name("trainclip_0_10000_2.png"))
    source = AVSBenchSource(tmp_path, "s4", "train", SIZE)
    assert source.problems(0) == [] and source[0]["labelled"].sum() == 1


def test_a_clip_in_two_splits_is_read_but_reported(root, tmp_path):
    shutil.copytree(root / "Multi-sources", tmp_path / "Multi-sources")
    with open(tmp_path / "Multi-sources/ms3_meta_data.csv", "a") as table:
        table.write("valclip_0,test\n")
    source = AVSBenchSource(tmp_path, "ms3", "val", SIZE)
    validate(source[0])
    (problem,) = source.problems(0)
    assert "'test' (line 9)" in str(problem) and source.problems(1) == []


def test_resize(root):
    with pytest.raises(InputError, match=r"expected 16 x 24 pixels; found 32 x 32.*data\.resize"):
        AVSBenchSource(root, "ms3", "val", (16, 24))[0]
    clip = validate(AVSBenchSource(root, "ms3", "val", (16, 24), resize=True)[0])
    assert clip["frames"].shape == (5, 16, 24, 3) and clip["labels"].shape == (5, 16, 24)
    whole = AVSBenchSource(root, "ms3", "val", SIZE)[0]
    assert abs(clip["labels"].mean() - whole["labels"].mean()) < 0.03


@pytest.mark.parametrize("size", [(5, 9), (20, 30), (3, 40), (11, 14)])
def test_squash_is_bilinear_between_pixel_centres(size):
    pixels = np.random.default_rng(0).integers(0, 256, (11, 14, 3), np.uint8)
    found = images.squash(pixels, size).astype(float)
    values = pixels.astype(float)
    for axis, (n, m) in enumerate(zip(pixels.shape, size, strict=False)):
        at = np.clip((np.arange(m) + 0.5) * n / m - 0.5, 0, n - 1)
        low = np.minimum(at.astype(int), n - 2)
        part = (at - low).reshape([-1 if a == axis else 1 for a in range(3)])
        values = values.take(low, axis) * (1 - part) + values.take(low + 1, axis) * part
    assert np.abs(found - values).max() < 0.501


# --- masks ---

TRUTH = np.zeros((6, 8), np.uint8)
TRUTH[1:4, 2:7] = 1


def palette(indices: np.ndarray, colours: list) -> Image.Image:
    image = Image.fromarray(indices, "L").copy()
    image = Image.frombytes("P", image.size, image.tobytes())
    image.putpalette([channel for colour in colours for channel in colour])
    return image


def rgba(alpha: int) -> Image.Image:
    pixels = np.dstack([TRUTH * 200, TRUTH * 0, TRUTH * 0, np.full_like(TRUTH, alpha)])
    pixels[..., 3] = np.where(TRUTH, 255, alpha)
    return Image.fromarray(pixels)


MASKS = {
    "1": Image.fromarray(TRUTH > 0),
    "L 0/255": Image.fromarray(TRUTH * 255),
    "L 0/1": Image.fromarray(TRUTH),
    "L greys, which converting to mode 1 would dither": Image.fromarray(TRUTH * 60),
    "RGB white": Image.fromarray(np.dstack([TRUTH * 255] * 3)),
    "RGB, one dark channel": Image.fromarray(np.dstack([TRUTH * 0, TRUTH * 0, TRUTH * 1])),
    "RGBA, opaque": rgba(255),
    "RGBA, transparent background": rgba(0),
    "RGBA, transparent but coloured background": Image.fromarray(
        np.dstack([np.full_like(TRUTH, 90)] * 3 + [TRUTH * 255])
    ),
    "LA": Image.fromarray(np.dstack([TRUTH * 255, np.full_like(TRUTH, 255)]), "LA"),
    "16 bits": Image.fromarray(TRUTH.astype(np.uint16) * 300),
    "P, index 1 coloured": palette(TRUTH, [(0, 0, 0), (128, 0, 0)]),
    "P, index 255 white": palette(TRUTH * 255, [(i, i, i) for i in range(256)]),
    "P, colours swapped": palette(1 - TRUTH, [(9, 9, 9), (0, 0, 0)]),
    "P, two indices that are black": palette(TRUTH * 2, [(0, 0, 0), (0, 0, 0), (0, 250, 0)]),
    "P, palette lost": palette(TRUTH, [(0, 0, 0), (0, 0, 0)]),
    "P, many indices": palette(TRUTH * np.arange(8, dtype=np.uint8), [(0, 0, 0)] + [(0, 0, 255)] * 7),
}


@pytest.mark.parametrize("name", MASKS)
def test_masks_of_every_mode(tmp_path, name):
    path = tmp_path / "mask.png"
    MASKS[name].save(path)
    found = images.read_mask(path, TRUTH.shape)
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, TRUTH)
    doubled = images.read_mask(path, (12, 16), resize=True)
    np.testing.assert_array_equal(doubled, TRUTH.repeat(2, 0).repeat(2, 1))


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA", "LA", "1"])
def test_frames_of_every_mode(tmp_path, mode):
    pixels = np.dstack([TRUTH * 255] * 3)
    save(tmp_path / "frame.png", pixels, mode)
    found = images.read_frame(tmp_path / "frame.png")
    assert found.shape == (6, 8, 3) and found.dtype == np.uint8
    np.testing.assert_array_equal(found, pixels)


def test_jpeg_frames_are_read_and_jpeg_masks_refused(tmp_path):
    Image.fromarray(np.dstack([TRUTH * 255] * 3)).save(tmp_path / "x.jpg", quality=95)
    assert np.abs(images.read_frame(tmp_path / "x.jpg")[2, 4].astype(int) - 255).max() < 40
    with pytest.raises(InputError, match="expected a PNG image; found a JPEG"):
        images.read_mask(tmp_path / "x.jpg")


def test_huge_images_are_refused_before_they_are_decoded(tmp_path):
    path = tmp_path / "x.png"
    save(path, TRUTH)
    header = bytearray(path.read_bytes())
    header[16:24] = (9000).to_bytes(4, "big") * 2
    header[29:33] = __import__("zlib").crc32(header[12:29]).to_bytes(4, "big")
    path.write_bytes(header)
    with pytest.raises(InputError, match="found 9000 x 9000"):
        images.read_mask(path)


def test_subset(root):
    source = AVSBenchSource(root, "ms3", "train", SIZE)
    some = Subset(source, [2, 0])
    assert len(some) == 2 and some.ids == (source.ids[2], source.ids[0]) and some.image_size == source.image_size
    np.testing.assert_array_equal(some[0]["frames"], source[2]["frames"])
    np.testing.assert_array_equal(some.audio(1), source.audio(0))
    assert some.fingerprint() != Subset(source, [0, 2]).fingerprint() != source.fingerprint()
    with pytest.raises(IndexError):
        some[2]
    for indices in ([], [3], [-1]):
        with pytest.raises(InputError, match="subset"):
            Subset(source, indices)
