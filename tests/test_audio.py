"""The VGGish front end against the reference's numbers, and sound files good and bad."""

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import soundfile

from avs_jax.data import audio
from avs_jax.errors import InputError

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture(scope="module")
def golden():
    return dict(np.load(GOLDEN / "vggish_logmel.npz"))


@pytest.fixture(scope="module")
def wave(golden):
    """The reference's waveform, 5 s at 16 kHz, float64: a sweep in noise."""
    f0, f1 = golden["f0"].astype(float), golden["f1"].astype(float)
    t = np.arange(80000) / 16000
    noise = np.random.Generator(np.random.PCG64(int(golden["seed"]))).standard_normal(80000)
    wave = 0.5 * np.sin(2 * np.pi * (f0 * t + (f1 - f0) / 10 * t * t)) + float(golden["noise"]) * noise
    np.testing.assert_allclose(wave[:16], golden["wave_probe"], atol=1e-6)
    return wave


@pytest.fixture(scope="module")
def pcm(wave, golden):
    """The same as 16-bit stereo, the right channel at half the level."""
    stereo = np.stack([wave, 0.5 * wave], 1)
    pcm = np.clip(np.round(stereo * 32767), -32768, 32767).astype(np.int16)
    np.testing.assert_array_equal(pcm[:16], golden["pcm_probe"])
    return pcm


def test_float_wave_matches_the_reference(wave, golden):
    out = audio.vggish_log_mel(wave, 16000)
    assert out.shape == (5, 96, 64) and out.dtype == np.float32
    np.testing.assert_allclose(out, golden["logmel_float"][:, 0], atol=1e-5, rtol=0)


def test_stereo_16_bit_matches_the_reference(pcm, golden):
    out = audio.vggish_log_mel(pcm, 16000)
    np.testing.assert_allclose(out[:, ::4], golden["logmel_pcm16_stereo"][:, 0], atol=1e-5, rtol=0)


def test_short_wave_repeats_its_last_example(wave, golden):
    short = wave[: round(float(golden["short_seconds"]) * 16000)]
    out = audio.vggish_log_mel(short, 16000)
    np.testing.assert_allclose(out[:, ::8, ::4], golden["short_padded"][:, 0], atol=1e-5, rtol=0)
    filled = int(golden["short_examples"])
    assert len(audio.vggish_log_mel(short, 16000, num_examples=None)) == filled
    np.testing.assert_array_equal(out[filled], out[filled - 1])
    zero = audio.vggish_log_mel(short, 16000, 10, pad="zero")
    np.testing.assert_array_equal(zero[:filled], out[:filled])
    assert zero.shape == (10, 96, 64) and not zero[filled:].any()


def test_mel_matrix_matches_the_reference(golden):
    matrix = audio.mel_matrix()
    np.testing.assert_allclose(matrix[:, ::3], golden["mel_matrix"], atol=1e-6)
    np.testing.assert_allclose(matrix.sum(0), golden["mel_matrix_colsum"], rtol=1e-6)


def test_long_wave_is_cut(wave):
    ten = np.concatenate([wave, wave[::-1]])
    np.testing.assert_array_equal(audio.vggish_log_mel(ten, 16000), audio.vggish_log_mel(wave, 16000))
    assert audio.vggish_log_mel(ten, 16000, 10).shape == (10, 96, 64)


def test_shorter_than_one_example_is_extended_with_silence(wave):
    out = audio.vggish_log_mel(wave[:100], 16000, 2)
    assert out.shape == (2, 96, 64)
    np.testing.assert_allclose(out[0, 50:], np.log(0.01), atol=1e-6)


@pytest.mark.parametrize(
    "dtype, scale, offset, tolerance",
    [(np.int32, 2**31 - 1, 0, 1e-4), (np.int16, 32767, 0, 0.05), (np.uint8, 127, 128, 0.6), (np.float32, 1, 0, 1e-4)],
)
def test_sample_types_agree(wave, dtype, scale, offset, tolerance):
    loud = np.clip(wave, -1, 1)
    values = loud * scale + offset
    coded = (np.round(values) if np.issubdtype(dtype, np.integer) else values).astype(dtype)
    found, truth = audio.vggish_log_mel(coded, 16000), audio.vggish_log_mel(loud, 16000)
    assert np.abs(found - truth).mean() < tolerance / 4  # 8 bits leave little near the floor of the log
    assert np.abs(audio.to_mono(coded) - loud).max() < 2 / max(scale, 127)


@pytest.mark.parametrize("rate", [8000, 22050, 44100, 48000])
def test_sample_rates_agree(rate):
    def tone(rate, seconds=5.0):
        t = np.arange(int(rate * seconds)) / rate
        return sum(0.2 * np.sin(2 * np.pi * f * t) for f in (300, 900, 2500))

    found, truth = audio.vggish_log_mel(tone(rate), rate), audio.vggish_log_mel(tone(16000), 16000)
    assert found.shape == (5, 96, 64)
    inner = (slice(1, 4),)  # away from the resampler's edges
    assert np.abs(np.exp(found[inner]) - np.exp(truth[inner])).max() < 2e-2


def test_kaiser_best_is_close_to_soxr(wave):
    found = audio.resample(wave[:4000], 48000, "kaiser_best")
    truth = audio.resample(wave[:4000], 48000, "soxr_hq")
    assert abs(found.size - truth.size) <= 1
    n = min(found.size, truth.size)
    assert np.abs(found[100 : n - 100] - truth[100 : n - 100]).std() < 0.02


def test_front_end_by_name(wave):
    front = audio.front_end("vggish", pad="zero")
    assert front.name == "vggish" and front.shape(3) == (3, 96, 64)
    assert pickle.loads(pickle.dumps(front)) == front and hash(front) == hash(audio.front_end("vggish", pad="zero"))
    out = front(wave[:16000], 16000, 3)
    assert out.shape == front.shape(3) and out.dtype == np.float32 and not out[1:].any()
    with pytest.raises(InputError, match="vggish"):
        audio.front_end("vgish")
    with pytest.raises(InputError, match=r"pad_.*Did you mean 'pad'"):
        audio.front_end("vggish", pad_="zero")


@pytest.mark.parametrize(
    "waveform, rate, words",
    [
        (np.zeros(0), 16000, "at least one sample"),
        (np.zeros((0, 2)), 16000, "at least one sample"),
        (np.array([0.0, np.nan]), 16000, "1 NaN"),
        (np.array([0.0, np.inf]), 16000, "1 NaN or infinite"),
        (np.zeros((2, 16000)), 16000, "Transpose"),
        (np.zeros((2, 3, 4)), 16000, "shape"),
        (np.zeros(99, np.uint16), 16000, "uint16"),
        (np.zeros(99), 0, "positive"),
        (np.zeros(99), float("nan"), "positive"),
    ],
)
def test_bad_waveforms_are_refused(waveform, rate, words):
    with pytest.raises(InputError, match=words):
        audio.vggish_log_mel(waveform, rate)


@pytest.mark.parametrize("suffix, subtype", [(".wav", "PCM_16"), (".wav", "PCM_24"), (".flac", "PCM_16")])
def test_read_audio_is_exact_for_lossless_files(tmp_path, pcm, suffix, subtype):
    path = tmp_path / f"x{suffix}"
    soundfile.write(path, pcm, 16000, subtype=subtype)
    samples, rate = audio.read_audio(path)
    assert rate == 16000 and samples.dtype == np.float32
    np.testing.assert_array_equal(samples, pcm.astype(np.float32) / 32768)
    np.testing.assert_array_equal(audio.vggish_log_mel(samples, rate), audio.vggish_log_mel(pcm, rate))


@pytest.mark.parametrize("suffix", [".ogg", ".mp3"])
def test_read_audio_decodes_lossy_files(tmp_path, wave, suffix):
    path = tmp_path / f"x{suffix}"
    soundfile.write(path, 0.5 * wave, 16000)
    samples, rate = audio.read_audio(path)
    assert rate == 16000 and samples.shape[1] == 1 and abs(len(samples) - 80000) < 4000
    assert 0.8 < samples.std() / (0.5 * wave.std()) < 1.2


def test_real_sounds():
    root = Path(os.environ.get("AVS_SHARED", Path(__file__).parents[2] / "shared")) / "data/audio/clips"
    paths = sorted(root.rglob("*.ogg"))[::60]
    if not paths:
        pytest.skip(f"no real sounds in {root}")
    for path in paths:
        out = audio.vggish_log_mel(*audio.read_audio(path))
        assert out.shape == (5, 96, 64) and np.isfinite(out).all() and out.std() > 0.05, path
