"""CAVP's audio front end, on the device: waveform to scaled log-mel spectrogram, inside jit and differentiable.

The Fourier transform is a product with a matrix: of a windowed frame only the 117 bins that the mel bands weigh are
wanted, and float32 products lose fewer digits there than a float32 FFT, on a CPU in less time.
"""

import functools

import jax.numpy as jnp
import numpy as np
from jax import lax

from avs_jax.errors import InputError
from avs_jax.models.layers import wide

SAMPLE_RATE = 16000  # Hz
FFT, WINDOW, HOP = 512, 400, 160  # samples; the window is in the middle of the frame
MEL_BINS, MEL_LOW, MEL_HIGH = 64, 125.0, 3800.0
FLOOR = 1e-5  # of the power: -100 dB


def spectrogram_frames(samples: int) -> int:
    """Frames that are kept of the 1 + samples / 160: 96 of one second's, the size that VGGish hears, else 100 a second.

    One second is 96 frames, three are 300.
    """
    return 96 if samples == SAMPLE_RATE else samples // HOP


def mel_spectrogram(waveform, frames: int | None = None):
    """Power spectrum, 64 mel bands, decibels, scaled: 0.2 log10(max(power, 1e-5)); silence is -1.

    A periodic Hann window of 25 ms every 10 ms, centred on its sample with the sound reflected at both ends; HTK's mel
    scale from 125 to 3800 Hz, triangles linear in hertz and of height 1. Chen et al., 2023, the public code's numbers.

    Args:
      waveform: (..., L), 16 kHz, any float dtype; more than 256 samples.
      frames: how many to keep; None = `spectrogram_frames(L)`.
    Returns:
      (..., frames, 64) float32 (wider if the waveform is).
    Raises:
      InputError: too few samples for the frames or the reflection.
    """
    waveform = jnp.asarray(waveform)
    waveform = waveform.astype(wide(waveform.dtype))
    samples = waveform.shape[-1]
    frames = spectrogram_frames(samples) if frames is None else frames
    if samples <= FFT // 2 or not 1 <= frames <= 1 + samples // HOP:
        raise InputError("waveform", expected=f"more than {FFT // 2} samples, and at least {(frames - 1) * HOP} "
                         f"for {frames} frames", found=f"{samples} samples")  # fmt: skip
    basis, mel = (jnp.asarray(x, waveform.dtype) for x in _matrices())
    matmul = functools.partial(jnp.matmul, precision=lax.Precision.HIGHEST)
    parts = matmul(_windows(waveform, frames), basis)
    power = jnp.square(parts).reshape(*parts.shape[:-1], 2, -1).sum(-2)
    return 0.2 * jnp.log10(jnp.maximum(matmul(power, mel), FLOOR))


def _windows(waveform, frames):
    """(..., L) -> (..., frames, 400): from blocks of one hop, two and a half of which make a window."""
    beyond = (FFT - WINDOW) // 2
    ends = [(0, 0)] * (waveform.ndim - 1) + [(FFT // 2, FFT // 2)]
    padded = jnp.pad(waveform, ends, mode="reflect")[..., beyond : beyond + HOP * (frames + 2)]
    short = HOP * (frames + 2) - padded.shape[-1]  # the last block is used by half
    padded = jnp.pad(padded, [*ends[:-1], (0, max(short, 0))])
    blocks = padded.reshape(*padded.shape[:-1], frames + 2, HOP)
    return jnp.concatenate([blocks[..., :-2, :], blocks[..., 1:-1, :], blocks[..., 2:, : WINDOW - 2 * HOP]], -1)


@functools.cache
def _matrices():
    """(400, 2 bins) windowed cosines and sines, (bins, 64) mel weights; float64, of the bins that weigh something."""
    mel = mel_filterbank()
    bins = np.flatnonzero(mel.any(1))
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(WINDOW) / WINDOW)
    angle = 2 * np.pi * np.outer(np.arange(WINDOW), bins) / FFT
    return np.concatenate([np.cos(angle), np.sin(angle)], 1) * window[:, None], mel[bins]


def mel_filterbank() -> np.ndarray:
    """(257, 64) float64: the weight of each bin of the spectrum (0 to 8000 Hz) in each band."""
    low, high = 2595 * np.log10(1 + np.array([MEL_LOW, MEL_HIGH]) / 700)
    edges = 700 * (10 ** (np.linspace(low, high, MEL_BINS + 2) / 2595) - 1)
    low, centre, high = edges[:-2], edges[1:-1], edges[2:]
    hertz = np.linspace(0, SAMPLE_RATE / 2, FFT // 2 + 1)[:, None]
    return np.maximum(0, np.minimum((hertz - low) / (centre - low), (high - hertz) / (high - centre)))
