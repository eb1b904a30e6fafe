"""A packed data set on disk: the clips of any other source in ArrayRecord shards, as `prepare pack` writes them.

    <root>/<split>/index.json                what was packed; see `packed_index`
    <root>/<split>/00000-of-00012.array_record  two records a clip (`clip_bytes`): what is seen of it, and what is heard

A shard is read at any place without what lies before, and only by who asks for one of its clips. Whatever the packed
source tells of itself and its clips this one tells too, bit for bit; its fingerprint is the same, so a run goes on from
shards that was begun on the files, and the other way round.
"""

import bisect
import inspect
import itertools
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from avs_jax.data import clip_bytes
from avs_jax.data.clip import Clip
from avs_jax.data.sources import SETTINGS, SOURCES, files, packed_index, source_class
from avs_jax.errors import InputError

# Each call reads one place: no buffers ahead of it, no threads of the library's own.
READER = {"options": "readahead_buffer_size:0,max_parallelism:0", "file_reader_buffer_size": 1 << 15}


class PackedSource:
    """A random-access source of packed clips (see `avs_jax.data.sources.Source`).

    Only the index is read at construction.

    Args:
      root: the folder that was the command's --output.
      split: of the packed data set.
      made_with: options of the packed source. What clips hold was fixed when they were packed: those given here must be
        the same; None is whatever was packed.
    Raises:
      InputError: no packed data set of that split, a damaged index, or an option that contradicts it.
    """

    def __init__(self, root: str | Path = "", split: str = "train", **made_with):
        self.root, self.split = _folder(root), str(split)
        self._path = _find(self.root, self.split)
        self._index = index = packed_index.read(self._path)
        cls = source_class(index["source"], index["options"])
        packed_index.check_given(self.root, index, cls, made_with)
        self.ids = tuple(index["ids"])
        self.num_frames, self.image_size = index["num_frames"], tuple(index["image_size"])
        self.own_size = index["own_size"]  # whether pictures keep their own size, so that `image_size` is not theirs
        self.class_names = tuple(index["class_names"])
        self.front_end = packed_index.front_end_of(self._path, index)
        self._ends = list(itertools.accumulate(shard["clips"] for shard in index["shards"]))
        self._readers, self._lock = {}, threading.Lock()

    @staticmethod
    def origin(options: Mapping) -> type:
        """The class of the packed source by its options alone, where the packed data set is not at hand.

        Raises:
          InputError: they do not say which it was.
        """
        for name in ("avsbench", "vpo", "single_plus"):  # the names of their settings are all different
            cls = source_class(name, options)
            settings = inspect.getmodule(cls).__dict__
            if options.get("setting") in settings.get("SETTINGS", settings.get("LAYOUTS", ("avss",))):
                return cls
        root, expected = repr(options.get("root")), "the packed data set that the run was trained on"
        raise InputError("data.root", expected=expected, found=root, hint="Set it to where it lies now.")

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> Clip:
        """Clip `index` as the record of `avs_jax.data.clip`; most of its arrays are read-only.

        Raises:
          InputError: its shard is missing or damaged.
        """
        seen, heard = self._read(index, (0, 1))
        return {**seen, "id": self.ids[index], **heard}

    def visual(self, index: int) -> Clip:
        """Clip `index` without its `audio`, which is not read."""
        return {**self._read(index, (0,))[0], "id": self.ids[index]}

    def audio(self, index: int) -> np.ndarray:
        """The record's `audio` of clip `index`; its pictures are not read."""
        heard = self._read(index, (1,))[0]
        if "audio" not in heard:
            raise InputError(f"clip '{self.ids[index]}', field 'audio'", expected="a packed sound", found="none")
        return heard["audio"]

    def audio_origin(self, index: int):
        """What identifies the sound of clip `index`: its checksum. No file is read."""
        return {"packed": self._index["audio"][files.position(index, len(self))]}, None

    def fingerprint(self) -> dict:
        """The packed source's own."""
        return self._index["fingerprint"]

    def __getattr__(self, name):
        """What only some sources have: the sounds and classes of each clip, and the sounds' names."""
        if name in ("sounds", "image_classes", "sound_names"):
            table = self._index["tables"].get({"sound_names": "sounds"}.get(name, name))
            if table is not None:
                if name == "sound_names":
                    return tuple(table["names"])
                return lambda index: packed_index.row_of(self._path, name, table, files.position(index, len(self)))
        raise AttributeError(f"'{type(self).__name__}' object has no attribute '{name}'")

    def __getstate__(self):
        return {name: value for name, value in self.__dict__.items() if name not in ("_readers", "_lock")}

    def __setstate__(self, state):
        self.__dict__ |= {**state, "_readers": {}, "_lock": threading.Lock()}  # every process opens its own

    # --- records ---

    def _read(self, index: int, parts: tuple[int, ...]) -> list[dict[str, np.ndarray]]:
        """The fields of parts of a clip: 0 what is seen, 1 what is heard."""
        index = files.position(index, len(self))
        number = bisect.bisect_right(self._ends, index)
        shard = self._index["shards"][number]
        path = self._path.parent / shard["file"]
        place = index - (self._ends[number] - shard["clips"])
        reader = self._readers.get(number) or self._open(number, path, shard)
        try:
            records = reader.read([2 * place + part for part in parts])
        except (RuntimeError, ValueError, IndexError) as error:
            raise _damaged(path, f"clip '{self.ids[index]}' that does not read: {error}") from None
        fields = []
        for record in records:
            found, values = clip_bytes.decode(record, f"{path}, clip '{self.ids[index]}'")
            if found != self.ids[index]:
                raise _damaged(path, f"clip '{found}' in place of '{self.ids[index]}'")
            fields.append(values)
        return fields

    def _open(self, number: int, path: Path, shard: Mapping):
        """The reader of a shard, whose size and number of clips are checked. From any thread."""
        from array_record.python.array_record_module import ArrayRecordReader

        with self._lock:
            if number in self._readers:
                return self._readers[number]
            try:
                found = path.stat().st_size
            except OSError as error:
                reason = "no such file" if isinstance(error, FileNotFoundError) else str(error)
                expected = f"a shard of {shard['clips']} clips"
                raise InputError(path, expected=expected, found=reason, hint=_REPAIR) from None
            if found != shard["bytes"]:
                raise _damaged(path, f"{found} bytes in place of {shard['bytes']}")
            try:
                reader = ArrayRecordReader(str(path), **READER)
                count = reader.num_records()
            except (RuntimeError, ValueError, OSError) as error:
                raise _damaged(path, str(error)) from None
            if count != 2 * shard["clips"]:
                raise _damaged(path, f"{count} records in place of {2 * shard['clips']}")
            self._readers[number] = reader
            return reader


_REPAIR = "The command that packed the data set, given again, makes what is missing or damaged."


def _damaged(path: Path, found: str) -> InputError:
    return InputError(path, expected="a whole shard", found=found, hint=_REPAIR)


def _folder(root: str | Path) -> Path:
    """`root` as a folder of this machine."""
    hint = "Set data.root to the --output of python -m avs_jax.prepare pack."
    if not str(root):
        raise InputError("data.root", expected="the folder of a packed data set", found="nothing", hint=hint)
    if "://" in str(root):
        hint = "Copy it to a disk of every machine (gcloud storage cp -r, aws s3 cp --recursive) or mount the bucket."
        raise InputError("data.root", expected="a folder: shards are read in place", found=repr(str(root)), hint=hint)
    root = Path(root).expanduser()
    if not root.is_dir():
        found = "a file" if root.exists() else "no such folder"
        raise InputError(root, expected="the folder of a packed data set", found=found, hint=hint)
    return root


def _find(root: Path, split: str) -> Path:
    """The index of a split, maybe packed under another name of the same clips (VPO's val is its test)."""
    own = root / split / packed_index.INDEX if Path(split).name == split else None
    if own and own.is_file():
        return own
    inside = sorted(entry.parent for entry in root.glob(f"*/{packed_index.INDEX}"))
    for folder in inside:
        if split in packed_index.read(folder / packed_index.INDEX)["splits"]:
            return folder / packed_index.INDEX
    names = ", ".join(folder.name for folder in inside)
    begun = bool(own) and own.parent.is_dir()
    found = "one that is not finished" if begun else f"only {names}" if names else "none"
    hint = "The command that began it, given again, goes on." if begun else ""
    raise InputError(root, expected=f"a packed split '{split}'", found=found, hint=hint)


def _signature() -> inspect.Signature:
    """Every source's options, which may be repeated; not given, they are whatever was packed."""
    own = [p for p in inspect.signature(PackedSource.__init__).parameters.values() if p.name in ("root", "split")]
    names = {p.name: p for p in own}
    others = [(name, {}) for name in SOURCES if name != "packed"]
    others += [(name, {"setting": setting}) for name, setting in SETTINGS]
    for name, options in others:
        for option in inspect.signature(source_class(name, options)).parameters:
            keyword = inspect.Parameter.KEYWORD_ONLY
            names.setdefault(option, inspect.Parameter(option, keyword, default=None, annotation=Any))
    return inspect.Signature(list(names.values()))


PackedSource.__signature__ = _signature()
