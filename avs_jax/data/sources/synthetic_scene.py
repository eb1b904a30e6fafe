"""What happens in a synthetic clip: which objects are seen, how they move, and which of them sound when.

The visible part and the audible part of a scene come from separate random streams, and the draw of who sounds reads
nothing but the number of visible objects: that is why pixels cannot reveal it.
"""

import dataclasses

import numpy as np

NUM_FRAMES = 5
FRAME_TIMES = np.arange(NUM_FRAMES) + 15 / 16  # seconds; the frame that AVSBench takes of each second
CLASSES = ("drum", "flute", "steam", "siren", "cricket", "bird", "engine", "bell")  # class index 1.. in this order


@dataclasses.dataclass(frozen=True)
class Difficulty:
    """All numbers that make a world easy or hard. Lengths are in units of the image's shorter side.

    radius: range of an object's radius (of the disc of the same area).
    num_objects: probabilities of 1, 2, 3, ... visible objects, for `multi` and `semantic`.
    single_objects: the same for `single`, where one of them sounds and the others are silent distractors.
    hue_jitter: half-width of the uniform jitter about the class's hue, in turns of the colour wheel.
    tilt: largest rotation from upright, radians.
    clearance: centres keep this multiple of the sum of radii apart where there is room (1: discs touch).
    background: contrast of the moving background, in [0, 1] of full scale.
    pixel_noise: largest noise of a colour value, grey levels of 255.
    sounding: each visible object sounds with this probability, given that at least one does.
    silent: probability that none does (of a clip under `persist`, of a second under `per_second`).
    offscreen: probability that a sound from off screen is heard (of a clip or of a second, as above).
    loudness_db: range of a sound's level; the range is the loudness floor of one sound under another.
    floor_rms: range of the level of the recording's own noise (full scale is 1).
    """

    radius: tuple[float, float] = (0.14, 0.20)
    num_objects: tuple[float, ...] = (0.0, 0.2, 0.8)
    single_objects: tuple[float, ...] = (0.0, 0.5, 0.5)
    hue_jitter: float = 0.12
    tilt: float = 0.10
    clearance: float = 1.0
    background: float = 0.10
    pixel_noise: float = 4.0
    sounding: float = 0.30
    silent: float = 0.12
    offscreen: float = 0.25
    loudness_db: tuple[float, float] = (-6.0, 0.0)
    floor_rms: tuple[float, float] = (2e-4, 8e-4)


DIFFICULTIES = {
    "easy": Difficulty(),
    "medium": Difficulty(
        radius=(0.11, 0.19), num_objects=(0.0, 0.1, 0.6, 0.3), single_objects=(0.0, 0.3, 0.5, 0.2), hue_jitter=0.18,
        tilt=0.25, clearance=0.9, background=0.16, pixel_noise=10.0, offscreen=0.35, loudness_db=(-9.0, 0.0),
        floor_rms=(4e-4, 2e-3),
    ),
    "hard": Difficulty(
        radius=(0.08, 0.18), num_objects=(0.0, 0.0, 0.4, 0.4, 0.2), single_objects=(0.0, 0.0, 0.5, 0.5),
        hue_jitter=0.30, tilt=0.50, clearance=0.75, background=0.22, pixel_noise=20.0, offscreen=0.5,
        loudness_db=(-12.0, 0.0), floor_rms=(1e-3, 5e-3),
    ),
}  # fmt: skip


@dataclasses.dataclass(frozen=True, eq=False)
class SceneObject:
    """A visible object over T frames. Lengths in units of the shorter side; x right, y down, from the top left.

    class_index: 1..C. center: (T, 2) x, y. radius: (T,). angle: (T,) radians. hue, saturation, value: in [0, 1].
    sounding: (T,) bool, heard in window t and so labelled in frame t. loudness_db: level when it sounds.
    """

    class_index: int
    center: np.ndarray
    radius: np.ndarray
    angle: np.ndarray
    hue: float
    saturation: float
    value: float
    sounding: np.ndarray
    loudness_db: float


@dataclasses.dataclass(frozen=True, eq=False)
class OffscreenSound:
    """A sound of a class that is not visible in the scene. Fields as in `SceneObject`."""

    class_index: int
    sounding: np.ndarray
    loudness_db: float


@dataclasses.dataclass(frozen=True, eq=False)
class Scene:
    """One clip's objects, in drawing order (a later one occludes an earlier one), and its off-screen sounds."""

    objects: tuple[SceneObject, ...]
    offscreen: tuple[OffscreenSound, ...]


def sounding_prior(num_objects: int, setting: str, difficulty: Difficulty) -> np.ndarray:
    """Probability of every set of sounding objects, the same for every scene of `num_objects`.

    Returns:
      (2 ** num_objects,) float64; bit k of the index says whether object k sounds.
    """
    sets = np.arange(2**num_objects)
    size = sum(sets >> k & 1 for k in range(num_objects))
    if setting == "single":
        return (size == 1) / num_objects
    p = difficulty.sounding
    weight = np.where(size > 0, p**size * (1.0 - p) ** (num_objects - size), 0.0)
    return np.where(size > 0, (1.0 - difficulty.silent) * weight / weight.sum(), difficulty.silent)


def draw_scene(look_rng, sound_rng, *, setting: str, schedule: str, difficulty: Difficulty, aspect) -> Scene:
    """Draws a scene.

    Args:
      look_rng: stream of everything visible.
      sound_rng: stream of who sounds, how loud, and what is heard from off screen.
      setting: "single", "multi" or "semantic".
      schedule: "persist" (one draw holds for the clip) or "per_second" (drawn anew for every second).
      difficulty: the numbers.
      aspect: (height, width) of the image in units of its shorter side.
    """
    visible = _draw_visible(look_rng, setting, difficulty, aspect)
    n = len(visible)
    draws = 1 if schedule == "persist" else NUM_FRAMES
    sets = sound_rng.choice(2**n, size=draws, p=sounding_prior(n, setting, difficulty))
    sounding = np.broadcast_to((sets[:, None] >> np.arange(n) & 1).astype(bool), (NUM_FRAMES, n))
    loudness = sound_rng.uniform(*difficulty.loudness_db, size=n + 1)
    seen = {fields["class_index"] for fields in visible}
    unseen = [c for c in range(1, len(CLASSES) + 1) if c not in seen]
    heard = np.broadcast_to(sound_rng.random(draws) < difficulty.offscreen, NUM_FRAMES)
    return Scene(
        objects=tuple(
            SceneObject(**fields, sounding=sounding[:, k].copy(), loudness_db=float(loudness[k]))
            for k, fields in enumerate(visible)
        ),
        offscreen=(OffscreenSound(int(sound_rng.choice(unseen)), heard.copy(), float(loudness[n])),),
    )


def _draw_visible(rng, setting, difficulty, aspect) -> list[dict]:
    """Fields of every visible object: classes all different, kept apart by rejection."""
    from avs_jax.data.sources.synthetic_looks import LOOKS

    counts = difficulty.single_objects if setting == "single" else difficulty.num_objects
    n = 1 + int(rng.choice(len(counts), p=counts))
    objects = []
    for c in rng.permutation(len(CLASSES))[:n]:
        look = LOOKS[c]
        radius = rng.uniform(*difficulty.radius)
        offset, scale, swing = _motion(look.motion, rng)
        radii = radius * scale
        objects.append({
            "class_index": int(c) + 1,
            "center": _place(rng, offset, radii, [(o["center"], o["radius"]) for o in objects], difficulty, aspect),
            "radius": radii,
            "angle": swing + rng.uniform(-difficulty.tilt, difficulty.tilt),
            "hue": float((look.hue + rng.uniform(-difficulty.hue_jitter, difficulty.hue_jitter)) % 1.0),
            "saturation": float(rng.uniform(0.65, 0.95)),
            "value": float(rng.uniform(0.70, 0.95)),
        })  # fmt: skip
    return objects


def _motion(kind: str, rng):
    """Offset (T, 2), relative size (T,) and rotation (T,) of an object that moves in its class's way."""
    turn = rng.uniform(0, 2 * np.pi) + 2 * np.pi * rng.uniform(0.25, 0.4) * FRAME_TIMES  # 2.5 - 4 s a turn
    amplitude, direction = rng.uniform(0.05, 0.09), rng.choice((-1.0, 1.0))
    wave, zero, one = amplitude * np.sin(turn), np.zeros(NUM_FRAMES), np.ones(NUM_FRAMES)
    ramp = direction * amplitude * (FRAME_TIMES - FRAME_TIMES.mean()) / 2
    if kind == "pulse":
        return np.stack([zero, zero], 1), 1 + 0.15 * np.sin(turn), zero
    if kind == "swing":
        return np.stack([zero, zero], 1), one, 0.25 * np.sin(turn)
    if kind == "hop":
        return rng.uniform(-0.06, 0.06, (NUM_FRAMES, 2)), one, zero
    offset = {
        "sway": (wave, zero),
        "rise": (zero, -np.abs(ramp) * np.sign(FRAME_TIMES - FRAME_TIMES.mean())),
        "drift": (ramp, zero),
        "circle": (wave, amplitude * np.cos(turn)),
        "still": (zero, zero),
    }[kind]
    return np.stack(offset, 1), one, zero


def _place(rng, offset, radii, placed, difficulty, aspect, tries: int = 64):
    """Trajectory (T, 2) = anchor + offset: the first of `tries` anchors that keeps clear of the objects already
    placed in every frame, else the one that keeps clearest."""
    size = np.array([aspect[1], aspect[0]])
    margin = 1.1 * radii.max()
    low = margin - offset.min(0)
    high = np.maximum(size - margin - offset.max(0), low + 1e-6)
    tracks = rng.uniform(low, high, (tries, 2))[:, None] + offset
    if not placed:
        return tracks[0]
    gaps = [np.hypot(*np.moveaxis(tracks - c, -1, 0)) / (difficulty.clearance * (radii + r)) for c, r in placed]
    gap = np.minimum.reduce(gaps).min(1)
    clear = gap >= 1
    return tracks[np.argmax(clear) if clear.any() else np.argmax(gap)]
