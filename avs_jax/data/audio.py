"""From sound to what an audio encoder hears: reading files, and front ends (waveform -> spectrogram) by name."""

import dataclasses
import functools
import io
from pathlib import Path
from typing import Protocol

import numpy as np

from avs_jax.errors import InputError, check_options, nearest
from avs_jax.paths import readable, to_path

SAMPLE_RATE = 16000  # Hz, what every front end works at
MAX_SAMPLES = 1 << 25  # of a sound file, all channels together, as stored or at 16 kHz: 35 minutes at 16 kHz
MAX_CHANNELS = 64
RATES = (1000, 768000)  # Hz, the lowest and the highest that sound is recorded at
RESAMPLERS = ("kaiser_best", "soxr_hq")
CROPS = ("middle", "reference")

# VGGish's front end: times in samples at 16 kHz, frequencies in Hz
WINDOW, HOP, FFT = 400, 160, 512
MEL_BINS, MEL_LOW, MEL_HIGH = 64, 125.0, 7500.0
LOG_OFFSET = 0.01
EXAMPLE = 96  # spectrogram frames in one example: 0.96 s
EXAMPLE_SAMPLES = WINDOW + (EXAMPLE - 1) * HOP  # 15600, the shortest sound that fills one example


class FrontEnd(Protocol):
    """A waveform becomes the record's `audio`. Implementations are frozen dataclasses: hashable and picklable."""

    name: str

    def __call__(self, waveform: np.ndarray, sample_rate: float, num_frames: int) -> np.ndarray:
        """The `audio` field, float32, of a clip of `num_frames` video frames whose sound is `waveform`."""

    def shape(self, num_frames: int) -> tuple[int, ...]:
        """The shape of what `__call__` returns."""


@dataclasses.dataclass(frozen=True)
class VGGishFrontEnd:
    """`vggish_log_mel`, one example of 0.96 s for each video frame (clips at 1 frame per second).

    Attributes:
      pad: what stands in for the examples a short sound does not fill: "repeat" (S4, MS3) or "zero" (AVSS).
      resampler: see `resample`.
      version: of the code: raise it when the same options give other numbers, or caches will not notice.
    """

    pad: str = "repeat"
    resampler: str = "kaiser_best"
    name: str = dataclasses.field(default="vggish", init=False)
    version: int = dataclasses.field(default=1, init=False)

    def __call__(self, waveform, sample_rate, num_frames):
        return vggish_log_mel(waveform, sample_rate, num_frames, self.pad, self.resampler)

    def shape(self, num_frames):
        return (num_frames, EXAMPLE, MEL_BINS)


@dataclasses.dataclass(frozen=True)
class WaveformFrontEnd:
    """Raw samples at 16 kHz, one window for each video frame: CAVP makes its spectrogram on the device.

    A clip of one frame hears the middle of its sound. With more, at 1 frame per second, frame t hears the window whose
    middle is that of second t, moved to lie within the sound.

    Attributes:
      seconds: of one window: 3 for VPO, 1 for AVSBench.
      crop: what becomes of a sound shorter than a window: "middle" repeats it from its beginning; "reference" is the
        public code, which repeats no more than its end (samples -d to the end, d = (window - sound) / 2, where d is
        shorter than the sound).
      channels: 1, the mean of all; or 2, left and right (a sound of one channel is on both).
      resampler: see `resample`.
      version: of the code: raise it when the same options give other numbers, or caches will not notice.
    """

    seconds: float = 3.0
    crop: str = "middle"
    channels: int = 1
    resampler: str = "soxr_hq"
    name: str = dataclasses.field(default="waveform", init=False)
    version: int = dataclasses.field(default=1, init=False)

    def __post_init__(self):
        for name, valid in (("crop", CROPS), ("channels", (1, 2)), ("resampler", RESAMPLERS)):
            if getattr(self, name) not in valid:
                raise InputError(f"front_end.{name}", expected=" or ".join(map(str, valid)),
                                 found=repr(getattr(self, name)), hint=nearest(getattr(self, name), valid))  # fmt: skip
        if not 0.1 <= self.seconds <= 60:
            raise InputError("front_end.seconds", expected="a number in [0.1, 60]", found=repr(self.seconds))

    def __call__(self, waveform, sample_rate, num_frames):
        """(num_frames, samples) float32, or (num_frames, 2, samples) with two channels."""
        if self.channels == 1:
            wave = resample(to_mono(waveform), sample_rate, self.resampler)
        else:
            wave = np.stack([resample(c, sample_rate, self.resampler) for c in _to_stereo(waveform).T], 1)
        length = self._samples
        starts = [wave.shape[0] // 2 - length // 2]
        if num_frames > 1:
            last = max(len(wave) - length, 0)
            starts = [min(max(round((t + 0.5) * SAMPLE_RATE) - length // 2, 0), last) for t in range(num_frames)]
        return np.stack([crop_or_repeat(wave, start, length, self.crop).T for start in starts]).astype(np.float32)

    def shape(self, num_frames):
        return (num_frames, *((2,) if self.channels == 2 else ()), self._samples)

    @property
    def _samples(self):
        return round(self.seconds * SAMPLE_RATE)


def crop_or_repeat(wave: np.ndarray, start: int, length: int, crop: str = "middle") -> np.ndarray:
    """`length` samples of (n,) or (n, channels) from `start` on; a shorter sound is repeated (see WaveformFrontEnd)."""
    if len(wave) >= length:
        return wave[start : start + length]
    kept = wave[start if -start < len(wave) else 0 :] if crop == "reference" and start < 0 else wave
    return np.resize(kept, (length, *wave.shape[1:]))


FRONT_ENDS = {"vggish": VGGishFrontEnd, "waveform": WaveformFrontEnd}


def front_end(name: str, **options) -> FrontEnd:
    """The front end called `name`; keyword options are its dataclass fields.

    Raises:
      InputError: an unknown name or option, naming the nearest valid one.
    """
    if name not in FRONT_ENDS:
        raise InputError(
            "front_end", expected="the name of an audio front end", found=repr(name), hint=nearest(name, FRONT_ENDS)
        )
    check_options("front_end", f"'{name}'", options, [f.name for f in dataclasses.fields(FRONT_ENDS[name]) if f.init])
    return FRONT_ENDS[name](**options)


def vggish_log_mel(
    waveform: np.ndarray,
    sample_rate: float,
    num_examples: int | None = 5,
    pad: str = "repeat",
    resampler: str = "kaiser_best",
) -> np.ndarray:
    """The log-mel examples that VGGish was trained on (Hershey et al., 2017) and AVSBench ships (Zhou et al., 2022).

    Magnitude spectrum of complete 25 ms periodic-Hann frames every 10 ms (no centring, no padding), 64 triangles
    linear in mel from 125 to 7500 Hz, log(x + 0.01); 96 consecutive frames, that is 0.96 s, make one example.
    Computed in float64, because a float32 FFT is off by 2e-3 near the log's floor.

    Args:
      waveform: (samples,) or (samples, channels), any sample type `to_mono` takes.
      sample_rate: Hz.
      num_examples: how many examples to return; those beyond it are cut off (the public preprocessing fails there),
        missing ones are padded. None: as many as the sound fills.
      pad: "repeat" repeats the last example, "zero" appends zeros.
      resampler: see `resample`.
    Returns:
      (num_examples, 96, 64) float32, (example, time, mel). A sound shorter than one example is first extended with
      silence to fill one.
    Raises:
      InputError: an empty waveform, one with NaN or infinite samples, or of unknown type or shape; a bad option.
    """
    if pad not in ("repeat", "zero"):
        raise InputError("pad", expected="'repeat' or 'zero'", found=repr(pad))
    if num_examples is not None and num_examples < 1:
        raise InputError("num_examples", expected="at least 1, or None", found=repr(num_examples))
    wave = resample(to_mono(waveform), sample_rate, resampler)
    if wave.size < EXAMPLE_SAMPLES:
        wave = np.pad(wave, (0, EXAMPLE_SAMPLES - wave.size))
    filled = (1 + (wave.size - WINDOW) // HOP) // EXAMPLE
    count = filled if num_examples is None else min(filled, num_examples)
    frames = np.lib.stride_tricks.sliding_window_view(wave, WINDOW)[::HOP]
    # One example at a time: its arrays stay in the processor's cache, which halves the time of the whole.
    examples = np.stack([_log_mel(frames[i : i + EXAMPLE]) for i in range(0, count * EXAMPLE, EXAMPLE)])
    if num_examples is None or count == num_examples:
        return examples
    missing = ((0, num_examples - count), (0, 0), (0, 0))
    return np.pad(examples, missing, mode="edge" if pad == "repeat" else "constant")


def _log_mel(frames: np.ndarray) -> np.ndarray:
    """(96, 400) float64 samples -> (96, 64) float32."""
    spectrum = np.fft.rfft(frames * _window(), FFT)  # zeros are appended after the 400 samples
    magnitude = np.sqrt(spectrum.real**2 + spectrum.imag**2)  # several times faster than np.abs, which guards overflow
    # In blocks of 12 frames: products this small never wake the threads of the BLAS, which on busy cores made this line
    # take 20 times as long.
    mel = (magnitude.reshape(EXAMPLE // 12, 12, -1) @ mel_matrix()).reshape(EXAMPLE, MEL_BINS)
    return np.log(mel + LOG_OFFSET).astype(np.float32)


@functools.cache
def _window() -> np.ndarray:
    return 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(WINDOW) / WINDOW)  # periodic Hann


@functools.cache
def mel_matrix() -> np.ndarray:
    """(257, 64) float64: the weight of each FFT bin (0 to 8000 Hz) in each of VGGish's mel bands."""

    def mel(hertz):
        return 1127.0 * np.log1p(hertz / 700.0)

    edges = np.linspace(mel(MEL_LOW), mel(MEL_HIGH), MEL_BINS + 2)
    low, centre, high = edges[:-2], edges[1:-1], edges[2:]
    bins = mel(np.linspace(0.0, SAMPLE_RATE / 2, FFT // 2 + 1))[:, None]
    weights = np.maximum(0.0, np.minimum((bins - low) / (centre - low), (high - bins) / (high - centre)))
    weights[0] = 0.0  # the constant part of a signal is not heard
    weights.flags.writeable = False  # shared by every caller
    return weights


def to_mono(waveform: np.ndarray) -> np.ndarray:
    """(samples,) float64 in [-1, 1]: the mean of the channels.

    Args:
      waveform: (samples,) or (samples, channels) of float16/32/64 in [-1, 1], int8/16/32 (full scale), or uint8
        (centred on 128, as in 8-bit wav files).
    Raises:
      InputError: another shape or type, no samples, or NaN or infinite samples.
    """
    scaled = _scaled(waveform)
    return scaled.mean(axis=1) if scaled.ndim == 2 else scaled


def _to_stereo(waveform: np.ndarray) -> np.ndarray:
    """(samples, 2) float64: of one channel twice itself; otherwise as `to_mono`."""
    scaled = _scaled(waveform)
    scaled = scaled[:, None] if scaled.ndim == 1 else scaled
    if scaled.shape[1] > 2:
        raise InputError("waveform", expected="one or two channels", found=f"{scaled.shape[1]}")
    return np.broadcast_to(scaled, (len(scaled), 2))


def _scaled(waveform: np.ndarray) -> np.ndarray:
    """(samples,) or (samples, channels) float64 in [-1, 1]; see `to_mono`."""
    wave = np.asarray(waveform)
    if wave.ndim not in (1, 2):
        raise InputError("waveform", expected="shape (samples,) or (samples, channels)", found=f"shape {wave.shape}")
    if wave.size == 0:
        raise InputError("waveform", expected="at least one sample", found=f"shape {wave.shape}")
    if wave.ndim == 2 and wave.shape[1] > max(64, wave.shape[0]):
        raise InputError(
            "waveform",
            expected="shape (samples, channels)",
            found=f"shape {wave.shape}",
            hint="Transpose it: samples come first.",
        )
    if wave.dtype == np.uint8:
        scaled = wave.astype(np.float64) / 128.0 - 1.0
    elif wave.dtype in (np.int8, np.int16, np.int32):
        scaled = wave.astype(np.float64) / -float(np.iinfo(wave.dtype).min)
    elif wave.dtype in (np.float16, np.float32, np.float64):
        scaled = wave.astype(np.float64)
        if not np.isfinite(scaled).all():
            bad = int((~np.isfinite(scaled)).sum())
            raise InputError("waveform", expected="finite samples", found=f"{bad} NaN or infinite samples")
    else:
        raise InputError("waveform", expected="float16/32/64, int8/16/32 or uint8 samples", found=str(wave.dtype))
    return scaled


def resample(wave: np.ndarray, sample_rate: float, resampler: str = "kaiser_best") -> np.ndarray:
    """(samples,) float64 at `sample_rate` Hz -> the same sound at 16 kHz.

    Args:
      resampler: "kaiser_best", resampy's default filter, as in the public VGGish preprocessing (its first call, through
        librosa, takes seconds), or "soxr_hq", as good and faster.
    """
    if not np.isfinite(sample_rate) or sample_rate <= 0:
        raise InputError("sample_rate", expected="a positive number of Hz", found=repr(sample_rate))
    if resampler not in RESAMPLERS:
        raise InputError(
            "resampler", expected="the name of a resampler", found=repr(resampler), hint=nearest(resampler, RESAMPLERS)
        )
    if sample_rate == SAMPLE_RATE:
        return wave
    if resampler == "soxr_hq":
        import soxr

        return soxr.resample(wave, sample_rate, SAMPLE_RATE, quality="HQ")
    import librosa  # here and not above: its first call takes seconds

    return librosa.resample(wave, orig_sr=sample_rate, target_sr=SAMPLE_RATE, res_type="kaiser_best", fix=False)


def _check_magic(path: Path | io.BytesIO) -> None:
    """libsndfile knows dozens of formats, some of which look for further files."""
    head = path.getvalue()[:4] if isinstance(path, io.BytesIO) else path.open("rb").read(4)
    known = head in (b"RIFF", b"RIFX", b"RF64", b"fLaC", b"OggS") or head[:3] == b"ID3"
    if head and not known and not (head[0] == 0xFF and head[1:2] >= b"\xe0"):  # MPEG's frames begin with 11 ones
        raise OSError(f"it begins with {head!r}")


def _check_header(path: Path, rate: int, channels: int) -> None:
    if not RATES[0] <= rate <= RATES[1]:
        raise InputError(path, expected=f"a sample rate of {RATES[0]} to {RATES[1]} Hz", found=f"{rate} Hz")
    if not 1 <= channels <= MAX_CHANNELS:
        raise InputError(path, expected=f"at most {MAX_CHANNELS} channels", found=f"{channels}")


def read_audio(path: str | Path) -> tuple[np.ndarray, int]:
    """Reads a sound file (wav, flac, ogg, mp3), whole, in memory: `media.read_audio_stream` is for long ones.

    Safe with files of any origin: other formats are not tried, and what a header states is checked before memory is
    taken; nor can a few bytes that unpack to hours of silence take more than `MAX_SAMPLES`.

    Returns:
      samples (n, channels) float32 in [-1, 1], exact for PCM of up to 24 bits; and the sample rate in Hz.
    Raises:
      InputError: the file is missing, is not audio, has no samples, too many of them, NaN or infinite ones, or a rate
        or number of channels that no recording has.
    """
    import soundfile

    path = to_path(path)
    if not path.is_file():
        raise InputError(path, expected="a sound file", found="a folder" if path.is_dir() else "no such file")
    blocks, count = [], 0
    try:
        content = readable(path)
        _check_magic(content)
        with soundfile.SoundFile(content) as file:
            rate, channels = file.samplerate, file.channels
            _check_header(path, rate, channels)
            # In blocks, so that a header that promises more than the file holds cannot claim the memory for it.
            while len(block := file.read((1 << 20) // channels, dtype="float32", always_2d=True)):
                blocks.append(block)
                count += len(block)
                if max(count * channels, count * SAMPLE_RATE // rate) > MAX_SAMPLES:
                    raise InputError(path, expected=f"at most {MAX_SAMPLES} samples", found="more",
                                     hint="Cut the sound into clips.")  # fmt: skip
    except (soundfile.LibsndfileError, OSError) as error:
        reason = getattr(error, "error_string", str(error))
        raise InputError(
            path,
            expected="a sound file (wav, flac, ogg or mp3)",
            found=f"{path.stat().st_size} bytes that do not decode: {reason}",
            hint="Extract the sound of a video to wav first.",
        ) from None
    if not blocks:
        raise InputError(path, expected="at least one sample of sound", found="zero samples")
    samples = np.concatenate(blocks) if len(blocks) > 1 else blocks[0]
    if not np.isfinite(samples).all():
        bad = int((~np.isfinite(samples)).sum())
        raise InputError(path, expected="finite samples", found=f"{bad} NaN or infinite samples")
    return samples, rate
