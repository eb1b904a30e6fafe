"""How the classes of the synthetic world sound, and the mixing of a scene's waveform.

A timbre is a function of a random stream that returns 5 s at 16 kHz of unceasing sound with root mean square 1. The
bands overlap little, and where they do the sounds differ in time structure, so that one 0.96 s window of log-mel
tells which classes it holds even when three sound together:

| class   | Hz          | sound                                                    |
|---------|-------------|----------------------------------------------------------|
| drum    | 130 - 330   | decaying thumps with falling pitch, 2.5 - 4 a second     |
| engine  | 300 - 750   | harmonic stack of 75 - 110 Hz, AM at 8 - 14 Hz           |
| flute   | 650 - 3000  | three steady harmonics of 650 - 900 Hz, slight vibrato   |
| siren   | 900 - 2300  | one partial swept up and down, 1.5 - 2.5 times a second  |
| bell    | 1200 - 5000 | three inharmonic partials struck 2 - 3 times a second    |
| bird    | 2600 - 5000 | rising chirps of 0.1 s, 3.5 - 5 a second                 |
| steam   | 5000 - 7400 | noise band, slow AM                                      |
| cricket | all         | broadband clicks, 11 - 16 a second                       |
"""

import numpy as np

SAMPLE_RATE = 16000
NUM_SAMPLES = 5 * SAMPLE_RATE
WINDOW = 15360  # samples of one VGGish example, 0.96 s
_SPILL = 240  # samples by which an example's last analysis frame reaches beyond its window
_FADE = 128
_TIME = np.arange(NUM_SAMPLES) / SAMPLE_RATE


def _events(event, rate, rng):
    """Repeats a short sound `rate` times a second with a little irregularity, from a random time on."""
    period = SAMPLE_RATE / rate
    starts = np.arange(-period * rng.random(), NUM_SAMPLES, period)
    starts = (starts + rng.uniform(-0.08, 0.08, len(starts)) * period).astype(int).clip(-len(event), NUM_SAMPLES)
    out = np.zeros(NUM_SAMPLES + 2 * len(event), np.float32)
    for s in starts + len(event):
        out[s : s + len(event)] += event
    return out[len(event) : len(event) + NUM_SAMPLES]


def _periodic(turns, harmonics):
    """A sum of harmonics of a phase given in turns, through a table of one period."""
    size = 4096
    x = 2 * np.pi * np.arange(size) / size
    table = sum(a * np.sin(k * x) for k, a in harmonics).astype(np.float32)
    return table[(turns * size).astype(np.int32) & (size - 1)]


def _noise(rng, low, high, size):
    """Noise between two frequencies (Hz) that repeats after `size` samples, by random phases."""
    spectrum = np.zeros(size // 2 + 1, np.complex64)
    a, b = int(low * size / SAMPLE_RATE), int(high * size / SAMPLE_RATE)
    spectrum[a:b] = np.exp(2j * np.pi * rng.random(b - a))
    return np.fft.irfft(spectrum, size).astype(np.float32)


def _modulation(rng, low, high, depth):
    """1 + a sinusoid of a random frequency between low and high Hz."""
    return _periodic(rng.random() + rng.uniform(low, high) * _TIME, [(1, depth)]) + np.float32(1)


def _drum(rng):
    t = np.arange(5000) / SAMPLE_RATE
    low = rng.uniform(130, 190)
    hit = np.sin(2 * np.pi * (low * t + 0.7 * low * 0.05 * (1 - np.exp(-t / 0.05)))) * np.exp(-t / 0.08)
    return _events(hit.astype(np.float32), rng.uniform(2.5, 4.0), rng)


def _flute(rng):
    vibrato = 0.02 * np.sin(2 * np.pi * rng.uniform(4, 6) * _TIME[::20] + rng.uniform(0, 6))
    turns = rng.uniform(650, 900) * _TIME + np.repeat(vibrato, 20)
    return _periodic(turns, [(1, 1.0), (2, 0.6), (3, 0.4)])


def _steam(rng):
    return np.tile(_noise(rng, 5000, 7400, 20000), 4) * _modulation(rng, 0.5, 1.5, 0.3)


def _siren(rng):
    rate, centre = rng.uniform(1.5, 2.5), rng.uniform(1350, 1650)
    sweep = 0.38 * centre / (2 * np.pi * rate) * np.sin(2 * np.pi * (rate * _TIME[::20] + rng.random()))
    # the sweep is slow: a straight line over 20 samples follows it closely
    sweep = np.interp(np.arange(NUM_SAMPLES), np.arange(0, NUM_SAMPLES, 20), sweep)
    return _periodic(centre * _TIME + sweep + 100, [(1, 1.0)])


def _cricket(rng):
    click = _noise(rng, 300, 7600, 160) * np.exp(-np.arange(160) / 30).astype(np.float32)
    return _events(click, rng.uniform(11, 16), rng)


def _bird(rng):
    t = np.arange(1600) / SAMPLE_RATE
    low, high = 2700 * rng.uniform(0.95, 1.1), 4500 * rng.uniform(0.95, 1.1)
    chirp = np.sin(2 * np.pi * (low * t + (high - low) * t * t / (2 * t[-1]))) * np.sin(np.pi * t / t[-1])
    return _events(chirp.astype(np.float32), rng.uniform(3.5, 5.0), rng)


def _engine(rng):
    base = rng.uniform(75, 110)
    stack = [(k, 1.0) for k in range(2, 10) if 300 <= k * base <= 750]
    return _periodic(base * _TIME + rng.random(), stack) * _modulation(rng, 8, 14, 0.7)


def _bell(rng):
    t = np.arange(7000) / SAMPLE_RATE
    base = rng.uniform(1200, 1500)
    partials = [(1.0, 1.0, 0.18), (2.0, 0.7, 0.12), (3.3, 0.5, 0.08)]
    strike = sum(a * np.sin(2 * np.pi * base * f * t) * np.exp(-t / decay) for f, a, decay in partials)
    return _events(strike.astype(np.float32), rng.uniform(2.0, 3.0), rng)


TIMBRES = (_drum, _flute, _steam, _siren, _cricket, _bird, _engine, _bell)  # in the order of synthetic_scene.CLASSES


def timbre(class_index: int, rng) -> np.ndarray:
    """(80000,) float32: 5 s of class `class_index` (1..C), root mean square 1."""
    sound = TIMBRES[class_index - 1](rng)
    return sound / np.sqrt(np.mean(sound * sound))


def gate(sounding: np.ndarray, rng) -> np.ndarray:
    """(80000,) float32 envelope that lets a sound through in the windows where `sounding` (T,) is true.

    A run of sounding windows starts up to 0.12 s late and is over before the next window begins. It never starts in
    the first 15 ms of a window, which the last analysis frame of the window before still hears. The 0.2 s after the
    last window belong to it.
    """
    envelope = np.zeros(NUM_SAMPLES, np.float32)
    ramp = np.linspace(0, 1, _FADE, dtype=np.float32)
    edges = np.flatnonzero(np.diff(np.concatenate([[0], sounding.astype(np.int8), [0]])))
    for first, last in edges.reshape(-1, 2):
        start = first * WINDOW + _SPILL + int(rng.random() * 1600)
        stop = NUM_SAMPLES if last == len(sounding) else last * WINDOW
        envelope[start:stop] = 1
        envelope[start : start + _FADE] = ramp
        envelope[stop - _FADE : stop] = ramp[::-1]
    return envelope


def mix(scene, difficulty, rng) -> np.ndarray:
    """The scene's sound, (80000,) float32 in [-1, 1]: everything that sounds, on screen or off, over a noise floor."""
    size = NUM_SAMPLES // 4
    floor = np.tile(rng.standard_normal(size, np.float32), 4)
    out = floor * np.float32(rng.uniform(*difficulty.floor_rms))
    for source in (*scene.objects, *scene.offscreen):
        if source.sounding.any():
            level = np.float32(0.05 * 10 ** (source.loudness_db / 20))
            out += timbre(source.class_index, rng) * gate(source.sounding, rng) * level
    peak = np.abs(out).max()
    return out / peak if peak > 1 else out
