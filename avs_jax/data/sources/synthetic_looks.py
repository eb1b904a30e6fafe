"""How the classes of the synthetic world look, and the drawing of a scene.

Shapes are functions of local coordinates (u right, v down, in units of the object's radius, so that every shape has
area near pi) that return a signed distance in the same units, negative inside. Textures return a tone in [-1, 1]:
dark, the object's own colour, light. No two classes share a shape, a texture or a motion.
"""

import colorsys
import dataclasses
from collections.abc import Callable

import numpy as np


def _disc(u, v):
    return np.sqrt(u * u + v * v) - 1.0


def _square(u, v):
    x, y = np.abs(u) - 0.64, np.abs(v) - 0.64
    return np.sqrt(np.maximum(x, 0) ** 2 + np.maximum(y, 0) ** 2) + np.minimum(np.maximum(x, y), 0) - 0.26


def _diamond(u, v):
    return (np.abs(u) + np.abs(v)) * np.float32(0.5**0.5) - 0.886


def _triangle(u, v):
    v = v - 0.12
    sides = np.maximum(np.abs(u) * np.float32(0.75**0.5) - v * 0.5, v) - 0.80
    return np.maximum(sides, np.sqrt(u * u + v * v) - 1.36)  # tips cut: finer than a stride-4 mask can follow


def _ellipse(u, v):
    a, b = 0.78, 1.28
    k = np.sqrt((u / a) ** 2 + (v / b) ** 2)
    return k * (k - 1) / np.sqrt((u / a**2) ** 2 + (v / b**2) ** 2 + 1e-6)


def _capsule(u, v):
    return np.sqrt(np.maximum(np.abs(u) - 0.70, 0) ** 2 + v * v) - 0.65


def _dome(u, v):
    v = v - 0.55
    return np.maximum(np.sqrt(u * u + v * v) - 1.40, v)


def _trapezoid(u, v):
    return np.maximum(np.abs(v) - 0.85, (np.abs(u) - 0.925 - 0.36 * v) * 0.94)


def _plain(u, v):
    return np.zeros_like(u)


def _rings(u, v):
    return np.cos(np.sqrt(u * u + v * v) * 9.0) * 1.6


def _checker(u, v):
    return np.sin(u * 5.2) * np.sin(v * 5.2) * 3


def _bands(u, v):
    return np.sin(v * 7.0) * 2


def _eye(u, v):
    return (0.55 - np.sqrt(u * u + v * v)) * 6


def _split(u, v):
    return u * 5


def _shade(u, v):
    return (-0.15 - v) * 1.5


def _sectors(u, v):
    return np.sin(3 * np.arctan2(u, v)) * 2.5


@dataclasses.dataclass(frozen=True)
class Look:
    """shape, texture: functions of (u, v). hue: centre, in turns. motion: see `synthetic_scene`. extent: half-width
    of the square, in radii, that holds the shape at any angle."""

    shape: Callable
    texture: Callable
    hue: float
    motion: str
    extent: float


# In the order of `synthetic_scene.CLASSES`. Neighbours on the colour wheel differ most in shape and texture.
LOOKS = (
    Look(_disc, _rings, 0.0, "pulse", 1.0),
    Look(_ellipse, _bands, 0.5, "sway", 1.3),
    Look(_dome, _shade, 0.75, "rise", 1.55),
    Look(_triangle, _plain, 0.125, "still", 1.5),
    Look(_square, _checker, 0.375, "hop", 1.2),
    Look(_diamond, _eye, 0.625, "circle", 1.3),
    Look(_capsule, _split, 0.25, "drift", 1.4),
    Look(_trapezoid, _sectors, 0.875, "swing", 1.55),
)


def draw(scene, height: int, width: int, difficulty, rng):
    """Draws a scene.

    Args:
      scene: `synthetic_scene.Scene`; only its visible objects are read.
      height, width: of a frame, pixels.
      difficulty: background contrast and pixel noise.
      rng: stream of the background and of the noise.
    Returns:
      frames (T, H, W, 3) uint8, anti-aliased in colour; instances (T, H, W) uint8, 0 background, k + 1 where object k
      is the nearest and covers more than half of the pixel.
    """
    side = min(height, width)
    num_frames = len(scene.objects[0].radius)
    canvas = _background(rng, num_frames, height, width, side, difficulty)
    instances = np.zeros((num_frames, height, width), np.uint8)
    for k, item in enumerate(scene.objects):
        _draw_object(canvas, instances, item, k + 1, side)
    if difficulty.pixel_noise:
        noise = np.frombuffer(rng.bytes(canvas.size), np.uint8).reshape(canvas.shape)
        canvas += (noise.astype(np.float32) - 127.5) * np.float32(difficulty.pixel_noise / 127.5 / 255)
    frames = (np.clip(canvas, 0, 1, out=canvas) * np.float32(255) + np.float32(0.5)).astype(np.uint8)
    return frames, instances


def _draw_object(canvas, instances, item, number, side):
    """Paints one object over (T, H, W, 3) `canvas` and (T, H, W) `instances`, in place, one small patch a frame."""
    look = LOOKS[item.class_index - 1]
    num_frames, height, width = instances.shape
    reach = look.extent * float(item.radius.max()) * side + 1.5  # pixels
    corner = np.floor(item.center * side - reach).astype(int)  # (T, 2) x, y
    grid = np.arange(int(np.ceil(2 * reach)) + 1) + 0.5
    scale = 1 / (item.radius * side)
    x = ((corner[:, :1] + grid - item.center[:, :1] * side) * scale[:, None]).astype(np.float32)[:, None, :]
    y = ((corner[:, 1:] + grid - item.center[:, 1:] * side) * scale[:, None]).astype(np.float32)[:, :, None]
    cos, sin = (f(item.angle).astype(np.float32)[:, None, None] for f in (np.cos, np.sin))
    u, v = cos * x + sin * y, cos * y - sin * x  # (T, P, P)
    depth = look.shape(u, v) * (-1 / scale).astype(np.float32)[:, None, None]  # pixels inside the outline
    cover = np.clip(depth + np.float32(0.5), 0, 1)
    tone = np.clip(look.texture(u, v), -1, 1)[..., None]
    base = np.array(colorsys.hsv_to_rgb(item.hue, item.saturation, item.value), np.float32)
    color = np.where(tone > 0, base + tone * np.float32(0.65) * (1 - base), base * (1 + tone * np.float32(0.6)))
    color *= np.clip(depth * np.float32(0.35) + np.float32(0.45), 0.45, 1)[..., None]  # a dark rim sets objects apart
    for t in range(num_frames):
        x0, y0 = corner[t]
        rows, cols = slice(max(y0, 0), min(y0 + len(grid), height)), slice(max(x0, 0), min(x0 + len(grid), width))
        if rows.start >= rows.stop or cols.start >= cols.stop:
            continue
        patch = (t, slice(rows.start - y0, rows.stop - y0), slice(cols.start - x0, cols.stop - x0))
        under = canvas[t, rows, cols]
        under += cover[patch][..., None] * (color[patch] - under)
        instances[t, rows, cols][cover[patch] > 0.5] = number


def _background(rng, num_frames, height, width, side, difficulty, waves: int = 5):
    """A dull colour and drifting plane waves, (T, H, W, 3) float32; a wave is a sum of two outer products."""
    base = np.array(colorsys.hsv_to_rgb(*rng.uniform((0, 0.05, 0.25), (1, 0.25, 0.65))), np.float32)
    frequency = 2 * np.pi * rng.uniform(-4, 4, (2, waves))  # radians per side
    phase = rng.uniform(0, 2 * np.pi, waves) + rng.uniform(-1.5, 1.5, waves) * np.arange(num_frames)[:, None]
    tint = difficulty.background / waves**0.5 * (1 + 0.5 * rng.uniform(-1, 1, (waves, 3)))
    a = frequency[0] * (np.arange(height)[:, None] / side) + phase[:, None, :]  # (T, H, waves)
    b = frequency[1] * (np.arange(width)[:, None] / side)  # (W, waves)
    left = np.concatenate([np.cos(a), np.sin(a)], -1).astype(np.float32)
    right = np.concatenate([np.cos(b).T[..., None] * tint[:, None], -np.sin(b).T[..., None] * tint[:, None]])
    # row by row: products this small never wake the threads of the BLAS, which cost 40 times more on busy cores
    out = (left[:, :, None] @ right.reshape(2 * waves, -1).astype(np.float32)).reshape(num_frames, height, width, 3)
    out += base
    return out
