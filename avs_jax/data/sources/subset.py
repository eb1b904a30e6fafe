"""Some of a source's clips, as a source."""

import hashlib
import operator
from collections.abc import Sequence

import numpy as np

from avs_jax.errors import InputError


class Subset:
    """The clips of `source` at `indices`, in that order (see `avs_jax.data.sources.Source`).

    Clip i is `source[indices[i]]`. Data augmentation and shuffles count in the subset's own positions.

    Raises:
      InputError: no indices, or one beyond the source.
    """

    def __init__(self, source, indices: Sequence[int]):
        self.source = source
        self.indices = np.asarray(indices, np.int64)
        if self.indices.ndim != 1 or not self.indices.size:
            raise InputError("subset", expected="at least one clip", found=f"indices of shape {self.indices.shape}")
        if self.indices.min() < 0 or self.indices.max() >= len(source):
            found = f"{self.indices.min()} to {self.indices.max()}"
            raise InputError("subset", expected=f"indices in 0 to {len(source) - 1}", found=found)
        self.ids = tuple(source.ids[i] for i in self.indices)
        self.num_frames, self.image_size = source.num_frames, source.image_size
        self.class_names, self.front_end = source.class_names, source.front_end

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int):
        return self.source[self._of_source(index)]

    def audio(self, index: int):
        """The record's `audio` of clip `index`."""
        return self.source.audio(self._of_source(index))

    def visual(self, index: int):
        """Clip `index` without its `audio`."""
        return self.source.visual(self._of_source(index))

    def audio_origin(self, index: int):
        """What the sound of clip `index` is made from, where the source tells."""
        index = self._of_source(index)
        return self.source.audio_origin(index) if hasattr(self.source, "audio_origin") else None

    def __getattr__(self, name):
        """What only some sources have: the sounds and classes of each clip, and the sounds' names."""
        if name in ("sounds", "image_classes"):
            of_clip = getattr(self.source, name)
            return lambda index: of_clip(self._of_source(index))
        if name == "sound_names":
            return self.source.sound_names
        raise AttributeError(f"'{type(self).__name__}' object has no attribute '{name}'")

    def fingerprint(self) -> dict:
        """The source's own, and which of its clips."""
        chosen = hashlib.sha256(self.indices.astype("<i8").tobytes()).hexdigest()[:16]
        return {**self.source.fingerprint(), "subset": chosen, "length": len(self)}

    def _of_source(self, index) -> int:
        index = operator.index(index)
        if not 0 <= index < len(self):
            raise IndexError(f"clip {index} of {len(self)}")
        return int(self.indices[index])
