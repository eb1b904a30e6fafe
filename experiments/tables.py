"""What a table is made of: the runs, the paper's figures, and which run answers which figure."""

import dataclasses
import hashlib
import json
import runpy
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from avs_jax.errors import InputError, nearest

ROOT = Path(__file__).resolve().parent.parent
DATASETS, SCALES = ("avsbench", "benchmark", "synthetic"), ("full", "tiny")
# Fields of a config that change neither what is learnt nor what is measured: a run is the same run without them.
INCIDENTAL = ("data.root", "pretrained.folder", "checkpoint", "log", "eval.report", "eval.batch_size",
              *(f"loader.{x}" for x in ("workers", "threads", "prefetch", "cache", "embeddings")))  # fmt: skip


class Figure(NamedTuple):
    """A kind of cell.

    Attributes:
      key: of the evaluation's report.
      factor: from there to the table's unit.
      printed, digits: decimals of the paper's figure and of ours.
      name, unit: for heads.
      lower: lower is better.
      pooled: from one confusion matrix over the data set.
    """

    key: str
    factor: float
    printed: int
    digits: int
    name: str
    unit: str = ""
    lower: bool = False
    pooled: bool = False

    @property
    def head(self) -> str:
        return f"{self.name}, {self.unit}" if self.unit else self.name


FIGURES = {
    "miou": Figure("miou", 100, 2, 1, "mIoU", "%"),
    "fscore": Figure("fscore", 1, 3, 3, "F-score"),
    "fscore_percent": Figure("fscore", 100, 2, 1, "F-score", "%"),
    "fdr": Figure("fdr", 100, 2, 1, "FDR", "%", lower=True, pooled=True),
    "miou_all_classes": Figure("miou_all_classes", 100, 2, 1, "mIoU", "%", pooled=True),
    "f1": Figure("f1", 100, 2, 1, "F1", "%", pooled=True),
    "parameters": Figure("parameters", 1e-6, 2, 2, "parameters", "M"),
    "audio_gain": Figure("audio_gain", 100, 2, 1, "audio gain", "%"),
}


@dataclasses.dataclass(frozen=True)
class Run:
    """One training, with any seed.

    Attributes:
      name: of its folder and in reports; of runs with the same recipe, the first one's is used.
      recipe: the config file, from the repository's root; its arguments include `dataset` and `scale`.
      arguments: of the recipe: name -> value.
      start: the run whose best checkpoint it starts from.
      checkpoint: the one that is evaluated, "best" (on the split that the recipe selects by) or "latest".
      changes: config field, as in "data.image_size" -> value: what differs from the recipe.
    """

    name: str
    recipe: str
    arguments: Mapping[str, Any] = dataclasses.field(hash=False)
    start: "Run | None" = None
    checkpoint: str = "best"
    changes: Mapping[str, Any] = dataclasses.field(default_factory=dict, hash=False)


@dataclasses.dataclass(frozen=True)
class Cell:
    """One figure of a table.

    Attributes:
      paper: as printed there, in the table's unit; None where the paper has none.
      run: the run that answers it; None for a system that is not here.
      figure: one of `FIGURES`, of the test split.
      spread: the standard deviation over runs that the paper prints.
    """

    paper: float | None
    run: Run | None = None
    figure: str = "miou"
    spread: float | None = None


class Comparison(NamedTuple):
    """Whether one row is better than another, tested over the runs' seeds. paper: its p for each column, where it has
    them."""

    better: str
    worse: str
    paper: tuple[float, ...] = ()


@dataclasses.dataclass(frozen=True)
class Table:
    """A table of a paper.

    Attributes:
      name: of its files.
      title: what it shows, and where in which paper.
      head: of the first column.
      columns: heads of the others.
      rows: label -> one cell per column.
      notes: what a reader must know to compare, a sentence each.
      baseline: the row that the others are compared with, clip by clip, or row -> that of its own; "" for none.
      blocks: how many columns stand side by side in each part of a wide table; () for all.
      comparisons: pairs of rows that are tested over seeds.
      seeds: of its runs where the command line names none.
      printed: decimals of the paper's figures, where they are not those of their kind.
    """

    name: str
    title: str
    head: str
    columns: Sequence[str]
    rows: Mapping[str, Sequence[Cell]]
    notes: Sequence[str] = ()
    baseline: str | Mapping[str, str] = ""
    blocks: Sequence[int] = ()
    comparisons: Sequence[Comparison] = ()
    seeds: Sequence[int] = (0,)
    printed: int | None = None

    def __post_init__(self):
        named = [self.baseline] if isinstance(self.baseline, str) else [*self.baseline, *self.baseline.values()]
        for label in [*filter(None, named), *(row for test in self.comparisons for row in test[:2])]:
            if label not in self.rows:
                raise ValueError(f"no row {label!r}")
        if self.blocks and sum(self.blocks) != len(self.columns):
            raise ValueError(f"blocks of {sum(self.blocks)} columns for {len(self.columns)}")
        for label, cells in self.rows.items():
            if len(cells) != len(self.columns):
                raise ValueError(f"row {label!r} has {len(cells)} cells for {len(self.columns)} columns")

    def cells(self) -> Iterator[tuple[str, str, Cell]]:
        """(row, column, cell), row by row."""
        for label, cells in self.rows.items():
            yield from ((label, column, cell) for column, cell in zip(self.columns, cells, strict=True))

    @property
    def published(self) -> bool:
        """Whether any of its figures is a paper's: a table may be ours alone."""
        return any(cell.paper is not None for _, _, cell in self.cells())

    def decimals(self, cell: Cell) -> int:
        """Of the paper's figure in a cell."""
        return FIGURES[cell.figure].printed if self.printed is None else self.printed

    def base(self, label: str) -> str:
        """The row that this one is compared with, or ""."""
        base = self.baseline if isinstance(self.baseline, str) else self.baseline.get(label, "")
        return base if base != label else ""

    def parts(self) -> Iterator[range]:
        """Positions of the columns that stand side by side."""
        end = 0
        for width in self.blocks or (len(self.columns),):
            yield range(end, end + width)
            end += width

    def figures(self) -> list[str]:
        """The kinds of its cells, in the order of the columns."""
        return list(dict.fromkeys(cell.figure for _, _, cell in self.cells()))

    def runs(self) -> list[Run]:
        """Its runs and those they start from, each once, in an order in which they can be trained."""
        found: list[Run] = []

        def add(run):
            if run is not None and run not in found:
                add(run.start)
                found.append(run)

        for _, _, cell in self.cells():
            add(cell.run)
        return found


@dataclasses.dataclass(frozen=True)
class Setup:
    """On what, how large and with what changes a table's runs are trained.

    Attributes:
      dataset: "avsbench" or "benchmark" (VPO and AVSBench-Single+), or "synthetic": the embedded one.
      scale: "full": the paper's recipe; "tiny": minutes on a CPU.
      root: folder of AVSBench, or of the benchmarks.
      overrides: config field, as in "optimizer.lr" -> value, for every run.
    Raises:
      InputError: another data set or scale.
    """

    dataset: str = "avsbench"
    scale: str = "full"
    root: str = "avsbench_data"
    overrides: tuple[tuple[str, Any], ...] = ()

    def __post_init__(self):
        for name, valid in (("dataset", DATASETS), ("scale", SCALES)):
            value = getattr(self, name)
            if value not in valid:
                raise InputError(f"--{name}", expected=" or ".join(valid), found=repr(value),
                                 hint=nearest(value, valid))  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Job:
    """A run with a seed and all that follows from its setup.

    Attributes:
      run, seed: what and which.
      config: the resolved one; `pretrained.method` is filled in when `start` is trained.
      start: the job of `run.start`, or None.
      key: eight hexadecimal digits: others for another recipe, setup, seed or start.
    """

    run: Run
    seed: int
    config: Any
    start: "Job | None"
    key: str

    @property
    def folder(self) -> str:
        """Name of its folder."""
        return f"{self.run.name}-seed{self.seed}-{self.key}"


def job_of(run: Run, setup: Setup, seed: int) -> Job:
    """Resolves a run's config.

    Raises:
      InputError: a recipe, argument or override that does not exist.
    """
    start = job_of(run.start, setup, seed) if run.start else None
    config = config_of(run, setup, seed)
    if start:
        config.tagging.steps = 0  # the audio encoder has been taught when it starts
    return Job(run, seed, config, start, _key(config, start.key if start else "", run.checkpoint))


def config_of(run: Run, setup: Setup, seed: int):
    """The run's config: its recipe, with the run's changes and the setup's overrides.

    Raises:
      InputError: see `job_of`.
    """
    arguments = {**run.arguments, "dataset": setup.dataset, "scale": setup.scale}
    text = ",".join(f"{name}={value}" for name, value in arguments.items())
    config = runpy.run_path(str(ROOT / run.recipe))["get_config"](text)
    config.seed = seed
    if setup.dataset != "synthetic":
        config.data.root = setup.root
    for changed in (run.changes, dict(setup.overrides)):
        for field, value in changed.items():
            _override(config, field, value)
        for given, other in (("steps", "epochs"), ("epochs", "steps")):
            if given in changed and other not in changed:  # the length that was given is the one meant
                config[other] = type(config[other])(0)
    return config


def _override(config, field: str, value) -> None:
    """Sets a field. Sections `data` and `method` take any option: the data set and the method know theirs."""
    section, names = config, field.split(".")
    for depth, name in enumerate(names):
        last = depth == len(names) - 1
        known = list(section) if hasattr(section, "items") else []
        if name not in known and not (last and depth and known and names[0] in ("data", "method")):
            raise InputError(f"--config.{field}", expected="a field of every run's recipe", found=repr(name),
                             hint=nearest(name, known) if known else "")  # fmt: skip
        if not last:
            section = section[name]
    present = section.get(names[-1])
    try:
        section[names[-1]] = tuple(value) if isinstance(present, tuple) and isinstance(value, list) else value
    except TypeError:
        raise InputError(f"--config.{field}", expected=type(present).__name__, found=repr(value)) from None


def _key(config, start: str, checkpoint: str) -> str:
    """Eight hexadecimal digits of all that a run's figures are a function of, its code excepted."""
    fields = config.to_dict()
    for field in INCIDENTAL:
        *sections, name = field.split(".")
        section = fields
        for part in sections:
            section = section[part]
        section.pop(name, None)
    evaluated = {} if checkpoint == "best" else {"checkpoint": checkpoint}
    text = json.dumps({"config": fields, "start": start, **evaluated}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:8]
