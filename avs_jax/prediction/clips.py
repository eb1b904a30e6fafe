"""From a stream of frames and sound to clips as a data set's: T frames one second apart, with the sound around them.

AVSBench takes the frame at 15/16 of each second and one window of sound per second. Predicting r frames per second is
therefore r interleaved sequences of clips, shifted by 1/r s; each clip is as the data set would have cut it there.
"""

import collections
import dataclasses
from collections.abc import Iterable, Iterator

import numpy as np

from avs_jax.data.audio import SAMPLE_RATE
from avs_jax.data.media import Frame, SoundWindow, squash

# Where in its second the frame lies: AVSBench takes frame int(s * fps + 15/16 * fps) for second s.
FRAME_IN_SECOND = 15 / 16
LEAD = round(FRAME_IN_SECOND * SAMPLE_RATE)  # a clip begins this much before its first frame, at most
EPS = 1e-4  # seconds; the clocks of files are rational numbers


@dataclasses.dataclass(frozen=True)
class Pick:
    """A frame to predict a mask for.

    Attributes:
      order: 0, 1, ... in time.
      time: the moment the mask is for, seconds.
      moment: the moment that counts as 15/16 of a second when the sound is cut.
      frame: number of the frame shown then, in the input; frame_time: since when it is shown, seconds.
      image: (H, W, 3) uint8 at the model's size.
    """

    order: int
    time: float
    moment: float
    frame: int
    frame_time: float
    image: np.ndarray


@dataclasses.dataclass
class Clip:
    """Frames one second apart, from `start` (seconds) on; `picks[s]` is None where the frame is only context."""

    start: float
    images: list[np.ndarray]
    picks: list[Pick | None]
    audio: np.ndarray | None = None


def pick_frames(
    frames: Iterable[Frame], rate: int | str, fps: float, duration: float, size: tuple[int, int]
) -> Iterator[Pick]:
    """The frames to predict, squashed to `size` (H, W): `rate` a second, or every one ("all").

    At `rate` a second the moments are 1/rate s apart and hold 15/16 s, 1 15/16 s, ... for every rate; the frame of a
    moment is the one shown then. A video that ends before its first moment gives its last frame.
    """
    if rate == "all":
        late = FRAME_IN_SECOND * min(1.0, 1.0 / fps)  # a frame is seen for a while; at 1 a second, as in the data set
        for order, frame in enumerate(frames):
            image = squash(frame.rgb(), size)
            yield Pick(order, frame.time, frame.time + late, frame.index, frame.time, image)
        return
    first = FRAME_IN_SECOND % (1 / rate)
    order, shown = 0, None

    def picks_until(end):
        nonlocal order
        image = None
        while (moment := first + order / rate) < end - EPS:
            image = squash(shown.rgb(), size) if image is None else image
            yield Pick(order, moment, moment, shown.index, shown.time, image)
            order += 1

    for frame in frames:
        if shown is not None:
            yield from picks_until(frame.time)
        shown = frame
    if shown is not None:
        yield from picks_until(max(duration, shown.time + 2 * EPS))
        if order == 0:
            yield Pick(0, shown.time, FRAME_IN_SECOND, shown.index, shown.time, squash(shown.rgb(), size))


def pick_picture(frame: Frame, duration: float, num_frames: int, size: tuple[int, int]) -> Iterator[Pick]:
    """The one pick of a picture, whose clip of `num_frames` lies in the middle of its sound of `duration` seconds."""
    start = max((duration - num_frames) / 2, 0.0)
    yield Pick(0, 0.0, start + FRAME_IN_SECOND, frame.index, frame.time, squash(frame.rgb(), size))


def expected_picks(rate: int | str, num_frames: int, duration: float) -> int:
    """How many frames `pick_frames` will yield, for a progress bar."""
    if rate == "all":
        return num_frames
    return max(1, int(np.ceil((duration - EPS - FRAME_IN_SECOND % (1 / rate)) * rate)))


def group(picks: Iterable[Pick], num_frames: int, tolerance: float) -> Iterator[Clip]:
    """Picks in time order -> clips of up to `num_frames` frames a second apart, each pick in exactly one.

    Clips grow side by side, one for each phase of the second. A pick extends the clip that expects a frame within
    `tolerance` seconds of it, or begins a new one. Where a clip's frame does not come (the frame rate varies, a frame
    is held for long) the frame shown then fills its place as context. Clips come out by their start; those that the
    end of the input cuts short have fewer frames.
    """
    growing = collections.deque()  # by the moment each clip expects its next frame: oldest first
    shown = None
    for pick in picks:
        while growing and _expects(growing[0]) < pick.moment - tolerance:
            yield from _extend(growing, shown.image, None, num_frames)
        if growing and _expects(growing[0]) <= pick.moment + tolerance:
            yield from _extend(growing, pick.image, pick, num_frames)
        else:
            growing.appendleft(Clip(pick.moment - FRAME_IN_SECOND, [], []))
            yield from _extend(growing, pick.image, pick, num_frames)
        shown = pick
    yield from sorted(growing, key=lambda clip: clip.start)


def _expects(clip: Clip) -> float:
    return clip.start + FRAME_IN_SECOND + len(clip.images)


def _extend(growing, image, pick, num_frames) -> Iterator[Clip]:
    clip = growing.popleft()
    clip.images.append(image)
    clip.picks.append(pick)
    if len(clip.images) == num_frames:
        yield clip
    else:
        growing.append(clip)


def hear(clips: Iterable[Clip], sound: SoundWindow, front_end, num_frames: int, end: float = np.inf) -> Iterator[Clip]:
    """Adds each clip's `audio`: the front end's view of `num_frames` seconds of sound from the clip's start.

    A clip of one frame, where the front end says how many `seconds` it hears, gets these, about the middle of the
    frame's second and moved to lie between 0 and `end`, where the sound ends (seconds).
    """
    for clip in clips:  # their starts never go back, so one forward pass over the sound serves them all
        start, length = round(clip.start * SAMPLE_RATE), num_frames * SAMPLE_RATE
        if num_frames == 1 and hasattr(front_end, "seconds"):
            start, length = _around(clip.start + 0.5, front_end.seconds, end)
        clip.audio = front_end(sound.read(start, length), SAMPLE_RATE, num_frames)
        yield clip


def _around(middle: float, seconds: float, end: float) -> tuple[int, int]:
    """(first sample, how many) of a window about a moment; less than `seconds` only where the sound is shorter."""
    start = max(min(middle - seconds / 2, end - seconds), 0.0)
    length = max(round(min(seconds, end) * SAMPLE_RATE), 1)
    return round(start * SAMPLE_RATE), length


def batches(clips: Iterable[Clip], batch_size: int, num_frames: int) -> Iterator[tuple[dict, list[Clip]]]:
    """Clips -> (batch, its clips); the batch has one shape for the whole run, so that one compilation serves it.

    A clip with too few frames is filled with copies of its last, a batch with too few clips with copies of its last
    (`valid` False).
    """
    held = []
    for clip in clips:
        held.append(clip)
        if len(held) == batch_size:
            yield _batch(held, batch_size, num_frames), held
            held = []
    if held:
        yield _batch(held, batch_size, num_frames), held


def _batch(clips: list[Clip], batch_size: int, num_frames: int) -> dict:
    filled = clips + [clips[-1]] * (batch_size - len(clips))
    frames = [np.stack(clip.images + [clip.images[-1]] * (num_frames - len(clip.images))) for clip in filled]
    return {
        "frames": np.stack(frames),
        "audio": np.stack([clip.audio for clip in filled]),
        "valid": np.arange(batch_size) < len(clips),
    }
