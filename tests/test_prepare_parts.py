"""What preparing data sets is made of: OpenCV's resize, moviepy's sound, torch's pickles, work in processes.

golden/opencv_resize.npz is OpenCV 5.0's `resize` of `noise(h, w)`.
"""

import io
import os
import pickletools
import signal
import subprocess
import sys
from concurrent.futures import _base
from pathlib import Path

import numpy as np
import pytest
from media_files import tone, write_video

from avs_jax.data import media
from avs_jax.data.prepare import avsbench_clip as clips
from avs_jax.data.prepare import runner, sound
from avs_jax.data.prepare.opencv import resize_linear
from avs_jax.data.prepare.torch_pickle import tensor_pickle
from avs_jax.errors import InputError
from avs_jax.torch_files import read_torch_pickle

ROOT = Path(__file__).parent.parent
GOLDEN = ROOT / "tests" / "golden"


def noise(height, width):
    return np.random.default_rng([height, width]).integers(0, 256, (height, width, 3), np.uint8)


def test_resize_is_opencvs_bit_for_bit():
    with np.load(GOLDEN / "opencv_resize.npz") as golden:
        assert len(golden.files) == 7  # shrunk, grown, halved, of the same size, and one of each way
        for name in golden.files:
            height, width, *size = map(int, name.split("_"))
            np.testing.assert_array_equal(resize_linear(noise(height, width), size), golden[name], name)


def test_pickle_is_the_data_sets_flavour():
    path = GOLDEN / "vggish_logmel_sample.pkl"
    values = read_torch_pickle(path)

    def names(raw):
        """Every name a pickle mentions, and those of the storage within it."""
        texts, found = [], []
        for op, arg, _ in pickletools.genops(raw):
            if op.name == "GLOBAL":
                found.append(arg.replace(" ", "."))
            elif op.name == "STACK_GLOBAL":
                found.append(".".join(texts[-2:]))
            elif isinstance(arg, str):
                texts.append(arg)
            elif isinstance(arg, bytes):
                stream = io.BytesIO(arg)
                for _ in range(5):  # magic, protocol, system, storage, keys
                    for inner, name, _ in pickletools.genops(stream):
                        found += [name.replace(" ", ".")] if inner.name == "GLOBAL" else []
                found.append(arg[stream.tell() :])  # how many numbers, and the numbers
        return found

    ours = tensor_pickle(values)
    assert names(ours) == names(path.read_bytes())
    assert "torch.FloatStorage" in names(ours) and len(names(ours)) == 5


@pytest.mark.parametrize("shape", [(5, 1, 96, 64), (3,), (2, 0, 4)])
def test_pickle_is_read_back(tmp_path, shape):
    values = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    (tmp_path / "a.pkl").write_bytes(tensor_pickle(values))
    found = read_torch_pickle(tmp_path / "a.pkl")
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, values)


def test_torch_reads_the_pickle(tmp_path):
    pytest.importorskip("torch")
    import pickle

    values = np.random.default_rng(0).standard_normal((5, 1, 96, 64)).astype(np.float32)
    tensor = pickle.loads(tensor_pickle(values))
    assert tensor.requires_grad and tensor.stride() == (6144, 6144, 64, 1)
    np.testing.assert_array_equal(tensor.detach().numpy(), values)


@pytest.mark.parametrize(
    "fps, numbers",
    [(30, (28, 58, 88, 118, 148)), (29.97, (28, 58, 88, 118, 148)), (23.976, (22, 46, 70, 94, 118)),
     (25, (23, 48, 73, 98, 123)), (12.5, (11, 23, 35, 47, 59)), (1, (0, 1, 2, 3, 4)), (24.497, (22, 46, 70, 94, 118))],
)  # fmt: skip
def test_frame_numbers(fps, numbers):
    assert clips.frame_numbers(fps) == numbers


@pytest.mark.parametrize("step", [700, 44100, 10**6])
def test_nearest_samples_do_not_depend_on_the_blocks(step):
    wave = np.random.default_rng(0).integers(-(2**15), 2**15, (100_003, 2)).astype(np.int16)
    take = sound._Nearest()
    found = np.concatenate([take(wave[i : i + step]) for i in range(0, len(wave), step)])
    k = np.arange(len(found))
    tie = k * 441 % 160 == 80  # half way between two samples: either
    places = np.where(tie, k * 441 // 160, (k * 441 + 80) // 160)
    near = [np.clip(wave[np.minimum(places + step, len(wave) - 1)], -32440, 32440) for step in (0, 1)]
    assert ((found == near[0]).all(1) | tie & (found == near[1]).all(1)).all()
    assert len(found) == np.ceil((len(wave) - 0.5) * 160 / 441) and tie.mean() < 0.01


def test_resamplers(tmp_path):
    """440 Hz passes both; 15 kHz, which 16 kHz cannot hold, comes back at 1 kHz unless it is filtered."""
    t = np.arange(44100 * 2) / 44100
    wave = np.stack([0.5 * np.sin(2 * np.pi * 440 * t), 0.5 * np.sin(2 * np.pi * 15000 * t)], 1).astype(np.float32)
    video = media.probe(write_video(tmp_path / "v.mkv", sound=wave, codec="pcm_s16le"))
    found = {kind: np.concatenate(list(sound.read_stereo(video, kind))) / 32768 for kind in sound.RESAMPLERS}
    for kind, samples in found.items():
        assert samples.shape == (32000, 2), kind
        spectrum = np.abs(np.fft.rfft(samples, axis=0)) / len(samples) * 2
        assert spectrum[880, 0] == pytest.approx(0.5, abs=0.02)
        assert spectrum[2000, 1] > 0.4 if kind == "nearest" else spectrum[:, 1].max() < 0.01


@pytest.mark.parametrize("at, samples", [(0.0, 32000), (0.04, 32000), (1.0, 48000)])
def test_a_late_track_comes_after_silence(tmp_path, at, samples):
    write_video(tmp_path / "v.mkv", seconds=3, sound=tone(2, 44100), codec="pcm_s16le", sound_at=at)
    found = np.concatenate(list(sound.read_stereo(media.probe(tmp_path / "v.mkv"))))
    assert abs(len(found) - samples) <= 16  # Matroska's clock ticks in milliseconds
    silent = 0 if at < media.GAP else round(at * 16000)
    assert not found[: max(0, silent - 16)].any() and np.abs(found[silent : silent + 100]).max() > 1000


def fragile(item):
    """For `runner.run`: 3 ends its process, 5 is an error."""
    if item == 3:
        os._exit(1)
    if item == 5:
        raise InputError("5", expected="no 5", found="5")
    return item * item


def test_an_item_that_ends_its_process_does_not_end_the_work():
    found = dict(runner.run(fragile, [1, 2, 3, 4], 2))
    assert found == {0: 1, 1: 4, 2: runner.Crashed, 3: 16}
    with pytest.raises(InputError, match="no 5"):
        dict(runner.run(fragile, [1, 5, 2], 1))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_while_it_holds_the_pools_locks(monkeypatch, number):
    """An exception in this moment would leave them locked, and the pool waiting for them."""
    taking, asked = _base._AcquireFutures.__enter__, []

    def interrupted(futures):
        taking(futures)
        if not asked:
            asked.append(number)
            signal.raise_signal(number)

    previous = signal.signal(number, signal.default_int_handler)
    monkeypatch.setattr(_base._AcquireFutures, "__enter__", interrupted)
    found = []
    try:
        with pytest.raises(KeyboardInterrupt):
            found.extend(runner.run(fragile, [1, 2, 4, 6, 7, 8], 1))
    finally:
        signal.signal(number, previous)
    assert asked and {(0, 1)} <= set(found) <= {(0, 1), (1, 4)}, "what was ready, and nothing that came after"


def test_second_interruption_ends_at_once():
    code = (
        "import signal; from avs_jax.data.prepare.runner import _Interruption\n"
        "with _Interruption():\n"
        "    signal.raise_signal(signal.SIGINT)\n"
        "    print('goes on', flush=True)\n"
        "    signal.raise_signal(signal.SIGINT)\n"
        "    print('not reached', flush=True)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (130, "goes on\n", "\ninterrupted\n")
