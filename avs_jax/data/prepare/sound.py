"""The sound of a video as a 16 kHz wav, as AVSBench's was made."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np

from avs_jax.data import media
from avs_jax.data.audio import SAMPLE_RATE
from avs_jax.errors import InputError

RESAMPLERS = ("nearest", "filtered")
CHANNELS = 2
_DECODED_RATE = 44100  # Hz, at which moviepy decodes every sound
_CEILING = 32440  # moviepy's samples end at 0.99 of full scale


@dataclasses.dataclass
class _Nearest:
    """Takes, for every sample at 16 kHz, the nearest one at 44.1 kHz; blocks in, blocks out."""

    seen: int = 0  # samples at 44.1 kHz
    made: int = 0  # samples at 16 kHz

    def __call__(self, block: np.ndarray) -> np.ndarray:
        """(n, channels) -> (about 0.36 n, channels), the next samples."""
        end = self.seen + len(block)
        k = np.arange(self.made, int(end * SAMPLE_RATE / _DECODED_RATE) + 2)
        places = np.round(_DECODED_RATE * ((1.0 / SAMPLE_RATE) * k)).astype(np.int64)  # in moviepy's order: ties
        places = places[places < end]
        picked = block[places - self.seen]
        self.seen, self.made = end, self.made + len(places)
        return np.clip(picked, -_CEILING, _CEILING)


def read_stereo(video: media.VideoInfo, resampler: str = "nearest") -> Iterator[np.ndarray]:
    """The sound of a video at 16 kHz, as blocks of (n, 2) int16.

    "nearest" is what AVSBench's preprocessing came to (moviepy): decoded at 44.1 kHz to stereo, then for every sample
    the nearest one, with no filter before, so that what lies above 8 kHz folds back into the sound. Public weights
    were trained on such sound: its log-mel is up to one unit louder in the upper bands. "filtered" resamples properly.

    The sound begins at its first sample where picture and sound begin within 0.05 s of each other, as in the public
    code; otherwise on the picture's clock (silence before a late track, an early one cut). What goes beyond the
    length that the file declares (an encoder's padding) is left out.

    Raises:
      InputError: sound that cannot be decoded.
    """
    rate = {"nearest": _DECODED_RATE, "filtered": SAMPLE_RATE}[resampler]
    late = video.sound.start if abs(video.sound.start) > media.GAP else 0.0
    take = _Nearest() if resampler == "nearest" else lambda block: block
    left = None
    for block, length in _decoded(video.path, rate, round(late * rate)):
        left = length if left is None else left
        block = take(block)
        yield block[:left]
        left -= len(block)
        if left <= 0:
            return


def _decoded(path: Path, rate: int, shift: int) -> Iterator[tuple[np.ndarray, int]]:
    """Blocks of (n, 2) int16 at `rate` Hz, `shift` samples later (earlier: cut); with each, the length at 16 kHz."""
    with media.opened(path) as container:
        resampler = av.AudioResampler("s16", "stereo", rate)
        declared = container.duration  # in units of 1e-6 s; FFmpeg shows hundredths of a second, which moviepy reads
        length = (declared + 5000) // 10000 * SAMPLE_RATE // 100 if declared else np.iinfo(np.int64).max
        for begin in range(0, shift, rate):  # a second at a time: a damaged clock may jump by years
            yield np.zeros((min(rate, shift - begin), CHANNELS), np.int16), length
        cut, empty = max(0, -shift), True
        for frame in container.decode(media.audio_stream(container)):
            empty = False
            try:
                parts = resampler.resample(frame)
            except ValueError as error:  # the rate or the channels change
                raise InputError(path, expected="sound of one kind throughout", found=str(error)) from None
            for block in map(_samples, parts):
                yield block[cut:], length
                cut = max(0, cut - len(block))
        for block in map(_samples, [] if empty else resampler.resample(None)):
            yield block[cut:], length
            cut = max(0, cut - len(block))


def _samples(frame: av.AudioFrame) -> np.ndarray:
    return frame.to_ndarray().reshape(-1, CHANNELS)
