"""Writes tiny AVSBench trees, laid out as the real ones, for tests."""

from pathlib import Path

import numpy as np
import soundfile
from PIL import Image
from torch_writer import T, pickle_bytes

from avs_jax.data.audio import vggish_log_mel

CLIPS = {"train": 3, "val": 2, "test": 2}
CATEGORIES = ("dog_barking", "playing_violin")
RATE = 16000


def write_tree(root: Path, setting: str = "s4", size: int = 32, sound: str = "wav", clips: dict | None = None) -> Path:
    """Writes one setting under `root` and returns `root`.

    Args:
      size: side of the square frames and masks.
      sound: "wav", "log_mel" or "both".
      clips: number of clips per split.
    Each clip is a square that moves and a tone whose pitch is its own.
    """
    folder = root / {"s4": "Single-source", "ms3": "Multi-sources"}[setting]
    data = folder / f"{setting}_data"
    rows = []
    for split, count in (clips or CLIPS).items():
        for i in range(count):
            name = f"{split}clip_{i}" + ("_10000" if setting == "s4" else "")
            category = CATEGORIES[i % 2] if setting == "s4" else ""
            rows.append(f"{name},{i},{category},{split}" if setting == "s4" else f"{name},{split}")
            frames = data / "visual_frames" / (f"{split}/{category}/{name}" if setting == "s4" else name)
            masks = data / "gt_masks" / split / category / name
            masked = 1 if (setting, split) == ("s4", "train") else 5
            suffix = "" if setting == "s4" else ".mp4"
            rng = np.random.default_rng([len(rows), size])
            for k in range(1, 6):
                frame, mask = picture(rng, size, k)
                save(frames / f"{name}{suffix}_{k}.png", frame)
                if k <= masked:
                    save(masks / f"{name}_{k}.png", mask)
            wave = 0.3 * np.sin(2 * np.pi * (200 + 100 * len(rows)) * np.arange(5 * RATE) / RATE)
            if sound in ("wav", "both"):
                path = data / "audio_wav" / split / category / f"{name}.wav"
                path.parent.mkdir(parents=True, exist_ok=True)
                soundfile.write(path, np.stack([wave, wave], 1), RATE)
            if sound in ("log_mel", "both"):
                path = data / "audio_log_mel" / split / category / f"{name}.pkl"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(pickle_bytes(T(vggish_log_mel(wave, RATE)[:, None])))
    header = {"s4": "name,start,category,split", "ms3": "video_id,split"}[setting]
    (folder / f"{setting}_meta_data.csv").write_text("\n".join([header, *rows]) + "\n")
    return root


def picture(rng, size: int, k: int) -> tuple[np.ndarray, np.ndarray]:
    """A noisy frame with a bright square, and the square as a 0/255 mask."""
    frame = rng.integers(0, 100, (size, size, 3), np.uint8)
    mask = np.zeros((size, size), np.uint8)
    corner = k + int(rng.integers(0, size // 4))
    mask[corner : corner + size // 3, corner : corner + size // 3] = 255
    frame[mask > 0] += 100
    return frame, mask


def save(path: Path, pixels: np.ndarray, mode: str | None = None) -> None:
    """Writes an image, converted to `mode` without dithering."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(pixels)
    image = image.convert(mode, dither=Image.Dither.NONE) if mode else image
    image.save(path)
