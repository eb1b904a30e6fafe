import itertools
import pickle

import numpy as np
import pytest

from avs_jax.data import pipeline
from avs_jax.errors import InputError

AUGMENT = {"hflip": 0.5, "scale": (0.8, 1.2), "color": 0.2}


class Numbers:
    """Clip i is a small picture of the number i."""

    num_frames, image_size, class_names = 2, (8, 8), ("background", "sounding")

    def __init__(self, count, bad=None):
        self.count, self.bad = count, bad
        self.ids = [f"clip{i}" for i in range(count)]

    def __len__(self):
        return self.count

    def __getitem__(self, i):
        if i == self.bad:
            raise InputError(f"file of clip{i}", expected="a picture", found="a poem")
        rng = np.random.default_rng(i)
        return {
            "frames": rng.integers(0, 255, (2, 8, 8, 3), np.uint8),
            "audio": np.full((2, 3), i, np.float32),
            "labels": rng.integers(0, 2, (2, 8, 8)).astype(np.uint8),
            "labelled": np.array([True, False]),
            "id": self.ids[i],
        }

    def fingerprint(self):
        return {"name": "numbers", "count": self.count}


def take(count, source=None, **options):
    options = {"seed": 3, "batch_size": 4, "augment": AUGMENT, "threads": 0} | options
    batches = pipeline.train_batches(source or Numbers(10), **options)
    try:
        return list(itertools.islice(batches, count))
    finally:
        batches.close()


def assert_equal(a, b):
    assert len(a) == len(b)
    for x, y in zip(a, b, strict=True):
        assert x.keys() == y.keys()
        for field in x:
            np.testing.assert_array_equal(x[field], y[field], err_msg=field)


def test_batch_is_the_record_stacked():
    batch = take(1)[0]
    assert {k: (v.shape, v.dtype.name) for k, v in batch.items()} == {
        "frames": ((4, 2, 8, 8, 3), "uint8"),
        "audio": ((4, 2, 3), "float32"),
        "labels": ((4, 2, 8, 8), "uint8"),
        "labelled": ((4, 2), "bool"),
        "index": ((4,), "int32"),
        "valid": ((4,), "bool"),
    }
    assert batch["valid"].all()
    np.testing.assert_array_equal(batch["audio"][:, 0, 0], batch["index"])


LOADERS = [{"threads": 3}, {"workers": 1, "threads": 1}, {"workers": 4, "threads": 0}]


@pytest.mark.parametrize("options", LOADERS, ids=str)
def test_workers_and_threads_change_nothing(options):
    assert_equal(take(8), take(8, **options))


def test_resumes_at_any_step():
    whole = take(9)
    for start in (1, 5):
        assert_equal(whole[start:], take(9 - start, start_step=start))
    assert_equal(whole[5:], take(4, start_step=5, workers=2))


@pytest.mark.parametrize("count", [2, 4])
def test_processes_share_the_same_batches(count):
    """Row by row: what a network draws at random for a row is the same then."""
    parts = [take(4, process_index=p, process_count=count) for p in range(count)]
    assert all(len(b["index"]) == 4 // count for part in parts for b in part)
    assert_equal(
        take(4), [{k: np.concatenate([b[k] for b in step]) for k in step[0]} for step in zip(*parts, strict=True)]
    )


def test_epochs_are_permutations_and_differ():
    order = np.concatenate([b["index"] for b in take(10)])
    epochs = order.reshape(4, 10)
    assert all(sorted(e) == list(range(10)) for e in epochs)
    assert len({tuple(e) for e in epochs}) == 4
    assert not np.array_equal(order, np.concatenate([b["index"] for b in take(10, seed=4)]))


def test_augmentation_differs_between_epochs_of_a_clip():
    batches = take(15, augment={"color": 0.5})
    seen = [b["frames"][list(b["index"]).index(7)].tobytes() for b in batches if 7 in b["index"]]
    assert len(seen) == len(set(seen)) == 6


def test_indices_of_a_step():
    for step, batch in enumerate(take(6)):
        np.testing.assert_array_equal(pipeline.train_indices(10, seed=3, batch_size=4, step=step), batch["index"])


@pytest.mark.parametrize("processes", [1, 2, 3])
@pytest.mark.parametrize("count", [1, 5, 12])
def test_evaluation_sees_every_clip_once(count, processes):
    parts = [
        list(pipeline.eval_batches(Numbers(count), batch_size=6, process_index=p, process_count=processes))
        for p in range(processes)
    ]
    assert len({len(part) for part in parts}) == 1
    batches = [b for part in parts for b in part]
    assert all(len(b["index"]) == 6 // processes for b in batches)
    index = np.concatenate([b["index"][b["valid"]] for b in batches])
    assert sorted(index) == list(range(count))


def test_evaluation_of_the_first_clips():
    batches = list(pipeline.eval_batches(Numbers(9), batch_size=4, max_clips=6, workers=1))
    assert np.concatenate([b["index"][b["valid"]] for b in batches]).tolist() == list(range(6))


@pytest.mark.parametrize("options", [{"threads": 0}, {"threads": 2}, {"workers": 1}], ids=str)
def test_a_bad_clip_names_itself(options):
    with pytest.raises(InputError, match="file of clip7: expected a picture; found a poem"):
        take(3, source=Numbers(10, bad=7), **options)


def test_clips_of_two_sizes_are_named():
    class Uneven(Numbers):
        def __getitem__(self, i):
            clip = super().__getitem__(i)
            return clip if i != 2 else clip | {"audio": np.zeros((3, 3), np.float32)}

    with pytest.raises(InputError, match="field 'audio'"):
        take(3, source=Uneven(4))


@pytest.mark.parametrize(
    "options, where",
    [
        ({"source": Numbers(0)}, "data source"),
        ({"batch_size": 0}, "batch_size"),
        ({"batch_size": 5, "process_count": 2}, "batch_size"),
        ({"process_index": 2, "process_count": 2}, "process_index"),
        ({"augment": {"hflop": 1.0}}, "augment.hflop"),
    ],
    ids=lambda value: "no clips" if "source" in value else str(value),  # the same name in every process
)
def test_bad_options_are_refused(options, where):
    source = options.pop("source", Numbers(10))
    with pytest.raises(InputError) as error:
        pipeline.train_batches(source, **({"seed": 0, "batch_size": 4} | options))
    assert error.value.where == where


def test_identity_names_the_difference():
    def identity(count=10, seed=0, augment=None):
        return pipeline.identity(Numbers(count), seed=seed, batch_size=4, augment=augment)

    assert pipeline.difference(identity(), identity()) is None
    assert pipeline.difference(identity(), identity(seed=1)) == ("seed", 0, 1)
    assert pipeline.difference(identity(), identity(count=11))[0] == "clips"
    assert pipeline.difference(identity(augment=AUGMENT), identity(augment=AUGMENT)) is None
    assert pipeline.difference(identity(), identity(augment=AUGMENT))[0] == "augment.color"


def test_to_device_keeps_every_batch():
    import jax
    from jax.sharding import AxisType, NamedSharding, PartitionSpec

    mesh = jax.make_mesh((1,), ("data",), axis_types=(AxisType.Auto,))
    sharding = NamedSharding(mesh, PartitionSpec("data"))
    expected = list(pipeline.eval_batches(Numbers(9), batch_size=2))
    found = list(pipeline.to_device(pipeline.eval_batches(Numbers(9), batch_size=2), sharding))
    assert all(v.sharding == sharding for b in found for v in b.values())
    assert_equal(expected, [{k: np.asarray(v) for k, v in b.items()} for b in found])


def test_cached_source_decodes_once():
    calls = []

    class Counting(Numbers):
        def __getitem__(self, i):
            calls.append(i)
            return super().__getitem__(i)

    cached = pipeline.Cached(Counting(4))
    assert_equal(take(6, source=Numbers(4)), take(6, source=cached))
    assert sorted(calls) == [0, 1, 2, 3]
    assert cached.ids == ["clip0", "clip1", "clip2", "clip3"] and len(cached) == 4
    cached = pipeline.Cached(Numbers(4))
    copy = pickle.loads(pickle.dumps(cached))
    np.testing.assert_array_equal(copy[2]["frames"], cached[2]["frames"])
