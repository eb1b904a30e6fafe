"""CAVP's audio front end: samples as the reference cuts them, and its spectrogram on the device."""

import functools
import pickle

import goldens
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from avs_jax.data import audio
from avs_jax.errors import InputError
from avs_jax.models.spectrogram import mel_filterbank, mel_spectrogram, spectrogram_frames


@pytest.fixture(scope="module")
def golden():
    return goldens.load("cavp_audio_frontend")


def waves(seconds):
    """The reference's four sounds, (4, samples) float32: two sweeps in noise, their sum, silence."""
    t = np.arange(16000 * seconds) / 16000

    def sweep(seed, f0, f1):
        noise = np.random.Generator(np.random.PCG64(seed)).standard_normal(len(t))
        return 0.5 * np.sin(2 * np.pi * f0 * t) + 0.25 * np.sin(2 * np.pi * (f1 * t + 300 * t * t)) + 0.01 * noise

    one, two = sweep(501, 440, 200), sweep(502, 748, 900)
    return np.stack([one, two, one + two, 0 * one]).astype(np.float32)


def in_float64(waveform, frames):
    """The definition, by a full FFT of every frame."""
    padded = np.pad(waveform.astype(np.float64), [(0, 0), (256, 256)], mode="reflect")
    window = np.pad(0.5 - 0.5 * np.cos(2 * np.pi * np.arange(400) / 400), 56)
    cut = np.stack([padded[:, 160 * i : 160 * i + 512] for i in range(frames)], 1)
    power = np.abs(np.fft.rfft(cut * window)) ** 2
    return 2 * (20 * np.log10(np.maximum(power @ mel_filterbank(), 1e-5)) + 100) / 200 - 1


def test_golden_filterbank(golden):
    np.testing.assert_allclose(mel_filterbank(), golden["mel_filterbank"], atol=2e-5)


@pytest.mark.parametrize("seconds, frames", [(1, 96), (3, 300)])
def test_golden_spectrogram(golden, seconds, frames):
    waveform = waves(seconds)
    np.testing.assert_array_equal(waveform[:, :16], golden[f"s{seconds}/wave_head"])
    found = np.asarray(jax.jit(mel_spectrogram)(waveform))
    assert found.shape == (4, frames, 64) and found.dtype == np.float32
    difference = np.abs(found - golden[f"s{seconds}/spectrogram"][:, 0])
    assert difference.max() < 5e-4 and difference.mean() < 1e-5
    np.testing.assert_array_equal(found[3], -1)  # silence
    difference = np.abs(found - in_float64(waveform, frames))  # closer to the definition than the reference is
    assert difference.max() < 3e-5 and difference.mean() < 1e-6


def test_other_lengths_and_leading_axes():
    waveform = waves(1)[:, :4810]
    assert spectrogram_frames(4810) == 30 and spectrogram_frames(16000) == 96 and spectrogram_frames(48000) == 300
    whole = jax.jit(functools.partial(mel_spectrogram, frames=31))(waveform.reshape(2, 2, 4810))
    assert whole.shape == (2, 2, 31, 64)
    np.testing.assert_allclose(whole.reshape(4, 31, 64), in_float64(waveform, 31), atol=5e-5)
    low = jax.jit(functools.partial(mel_spectrogram, frames=2))(jnp.asarray(waveform, jnp.bfloat16))
    assert low.dtype == jnp.float32 and low.shape == (4, 2, 64)


@pytest.mark.parametrize("samples, frames", [(256, None), (4800, 32), (4800, 0)])
def test_too_short_sounds_are_refused(samples, frames):
    with pytest.raises(InputError, match="waveform"):
        mel_spectrogram(np.zeros((2, samples), np.float32), frames)


# ------------------------------------------------------------------------------------- samples, on the host


@pytest.mark.parametrize("seconds", [1, 3])
@pytest.mark.parametrize("length", [160000, 48000, 40000, 12345])
def test_golden_crops(golden, length, seconds):
    want = golden[f"crop/n{length}_s{seconds}"]
    sound = np.arange(length) / 2**18  # exact in float32, and its index is found again
    cut = audio.front_end("waveform", seconds=seconds, crop="reference")(sound, 16000, 1)[0].astype(float) * 2**18
    found = [cut.size, cut[0], cut[-1], cut.sum() / 1e6, cut[cut.size // 2]]
    np.testing.assert_allclose(found, want, rtol=1e-6)
    ours = audio.front_end("waveform", seconds=seconds)(sound, 16000, 1)[0]
    if length >= 16000 * seconds:
        np.testing.assert_array_equal(ours, cut.astype(np.float32) / 2**18)
    else:  # the whole sound, again and again
        np.testing.assert_array_equal(ours, sound.astype(np.float32)[np.arange(16000 * seconds) % length])


def test_each_frame_of_a_clip_hears_its_second():
    sound = np.arange(80000) / 2**18
    front = audio.front_end("waveform", seconds=1)
    cut = front(sound, 16000, 5)
    assert cut.shape == front.shape(5) == (5, 16000) and cut.dtype == np.float32
    np.testing.assert_array_equal(cut.ravel(), sound.astype(np.float32))
    three = audio.front_end("waveform", seconds=3)(sound, 16000, 5) * 2**18
    np.testing.assert_array_equal(three[:, 0], [0, 0, 16000, 32000, 32000])  # moved to lie within
    assert audio.front_end("waveform", seconds=3)(sound[:20000], 16000, 2).shape == (2, 48000)


def test_channels():
    stereo = np.stack([np.arange(500), -np.arange(500)], 1) / 1024
    mono, both = (audio.front_end("waveform", seconds=0.1, channels=c) for c in (1, 2))
    np.testing.assert_array_equal(mono(stereo, 16000, 1), np.zeros((1, 1600), np.float32))
    out = both(stereo, 16000, 1)
    assert out.shape == both.shape(1) == (1, 2, 1600)
    np.testing.assert_array_equal(out[0, 0], (np.arange(1600) % 500 / 1024).astype(np.float32))
    np.testing.assert_array_equal(out[0, 0], -out[0, 1])
    np.testing.assert_array_equal(*both(stereo[:, 0], 16000, 1)[0])
    with pytest.raises(InputError, match="one or two channels"):
        both(np.zeros((500, 3)), 16000, 1)
    assert abs(len(both(stereo, 8000, 1)[0, 0]) - 1600) == 0  # resampled first


def test_front_end_by_name():
    front = audio.front_end("waveform", seconds=1, crop="reference")
    assert pickle.loads(pickle.dumps(front)) == front and front.name == "waveform"
    for options, where in (({"crop": "center"}, "crop"), ({"seconds": 0}, "seconds"), ({"channels": 3}, "channels"),
                           ({"resampler": "sox"}, "soxr_hq"), ({"second": 1}, "seconds")):  # fmt: skip
        with pytest.raises(InputError, match=where):
            audio.front_end("waveform", **options)
