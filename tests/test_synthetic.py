"""The synthetic world: purity, settings, schedules, what the sound tells, and that pixels do not tell who sounds."""

import itertools
import json
import pickle

import numpy as np
import pytest

from avs_jax.data.clip import IGNORE, validate
from avs_jax.data.sources import create_source
from avs_jax.data.sources.synthetic import SyntheticSource, expected_j, video_only_ceiling
from avs_jax.data.sources.synthetic_looks import LOOKS
from avs_jax.data.sources.synthetic_scene import DIFFICULTIES, sounding_prior
from avs_jax.data.sources.synthetic_timbres import NUM_SAMPLES, WINDOW, gate
from avs_jax.errors import InputError

ALL = [("single", "persist")] + [(a, b) for a in ("multi", "semantic") for b in ("persist", "per_second")]


def equal(a, b):
    return a.keys() == b.keys() and all(np.array_equal(a[k], b[k]) for k in a)


def test_a_clip_is_a_pure_function_of_seed_split_and_index():
    source = SyntheticSource("val")
    first = source[3]
    source[0], source[7]
    assert equal(first, source[3]) and equal(first, SyntheticSource("val", length=9)[3])
    assert equal(first, pickle.loads(pickle.dumps(source))[np.int64(3)])
    assert np.array_equal(first["audio"], source.audio(3))
    others = [SyntheticSource("train")[3], SyntheticSource("test")[3], SyntheticSource("val", seed=1)[3], source[4]]
    for other in others:
        assert not np.array_equal(first["frames"], other["frames"])
        assert not np.array_equal(first["audio"], other["audio"])


@pytest.mark.parametrize("difficulty", DIFFICULTIES)
@pytest.mark.parametrize("setting,schedule", ALL)
def test_records_are_valid(setting, schedule, difficulty):
    source = create_source("synthetic", split="val", setting=setting, schedule=schedule, difficulty=difficulty)
    for i in range(3):
        clip = validate(source[i], num_classes=len(source.class_names))
        assert clip["frames"].shape == (5, 64, 64, 3) and clip["frames"].dtype == np.uint8
        assert clip["audio"].shape == source.front_end.shape(source.num_frames) == (5, 96, 64)
        assert clip["id"] == source.ids[i]
        wave = source.waveform(i)
        assert wave.shape == (NUM_SAMPLES,) and wave.dtype == np.float32 and np.abs(wave).max() <= 1


@pytest.mark.parametrize("size,shape", [(50, (50, 50)), ([48, 80], (48, 80)), (16, (16, 16))])
def test_any_image_size(size, shape):
    source = SyntheticSource(image_size=size)
    clip = validate(source[0])
    assert source.image_size == shape and clip["labels"].shape == (5, *shape)
    for k in range(len(source.scene(0).objects)):
        assert (source.instances(0) == k + 1).any()


def test_a_larger_image_shows_the_same_scene():
    small, large = (SyntheticSource(image_size=s).instances(2) for s in (48, 144))
    assert (small == large[:, 1::3, 1::3]).mean() > 0.99


def test_length_ids_and_bounds():
    source = SyntheticSource("test", length=4)
    assert len(source) == len(set(source.ids)) == len(list(source)) == 4
    for index in (4, -1):
        with pytest.raises(IndexError):
            source[index]
    assert [len(SyntheticSource(s)) for s in ("train", "val", "test")] == [3000, 200, 200]


def test_fingerprint_tells_every_option_apart():
    base = SyntheticSource().fingerprint()
    changes = [{"split": "val"}, {"setting": "semantic"}, {"schedule": "per_second"}, {"length": 5}, {"seed": 1},
               {"image_size": 96}, {"difficulty": "hard"}, {"still": True}, {"front_end": "waveform"},
               {"front_end": "waveform", "seconds": 1.0}]  # fmt: skip
    prints = [json.dumps(base)] + [json.dumps(SyntheticSource(**c).fingerprint()) for c in changes]
    assert json.loads(prints[0]) == base and len(set(prints)) == len(prints)


@pytest.mark.parametrize(
    "option,value,says",
    [
        ("setting", "foo", "single, multi, semantic"),
        ("setting", "mutli", "Did you mean 'multi'"),
        ("schedule", "per_secnd", "Did you mean 'per_second'"),
        ("split", "validation", "train, val, test"),
        ("difficulty", "medum", "Did you mean 'medium'"),
        ("front_end", "vgish", "Did you mean 'vggish'"),
        ("image_size", 8, "at least 16"),
        ("image_size", (64, 64, 3), "(height, width)"),
        ("image_size", "64", "an integer"),
        ("length", 0, "at least 1"),
        ("length", 2.5, "an integer"),
        ("seed", -1, "at least 0"),
        ("setting", None, "None"),
        ("shedule", "persist", "Did you mean 'schedule'"),
        ("seconds", 1.0, "nothing with front end 'vggish'"),
    ],
)
def test_bad_options_are_refused(option, value, says):
    with pytest.raises(InputError) as error:
        create_source("synthetic", **{option: value})
    assert option in str(error.value) and says in str(error.value)


def test_single_does_not_change_by_the_second():
    with pytest.raises(InputError, match="persist"):
        SyntheticSource(setting="single", schedule="per_second")


@pytest.mark.parametrize("setting", ["single", "multi", "semantic"])
def test_a_still_is_the_middle_of_its_clip(setting):
    whole = SyntheticSource("train", setting, front_end="waveform", seconds=1.0)
    still = SyntheticSource("train", setting, front_end="waveform", seconds=1.0, still=True)
    with pytest.raises(InputError, match="per_second"):
        SyntheticSource(setting="multi", schedule="per_second", still=True)
    for i in range(3):
        clip, frame = whole[i], validate(still[i], num_classes=len(still.class_names))
        assert frame["audio"].shape == still.front_end.shape(still.num_frames) == (1, 16000)
        for field in ("frames", "audio", *(["labels"] if setting != "single" else [])):
            assert np.array_equal(frame[field], clip[field][2:3]), field
        assert frame["labelled"].tolist() == [True] and not (frame["labels"] == IGNORE).any()
        assert np.array_equal(still.sounds(i), whole.sounds(i)[2:3])


def test_single_labels_only_the_first_training_frame():
    for split in ("train", "val"):
        source = SyntheticSource(split, "single")
        for i in range(10):
            clip, scene = source[i], source.scene(i)
            assert sum(o.sounding.all() for o in scene.objects) == 1
            assert sum(o.sounding.any() for o in scene.objects) == 1
            assert clip["labelled"].tolist() == [True, *[split != "train"] * 4]
            assert ((clip["labels"] == IGNORE).all((1, 2)) == ~clip["labelled"]).all()
            assert not (clip["labels"][clip["labelled"]] == IGNORE).any()


@pytest.mark.parametrize("setting,schedule", ALL)
def test_labels_follow_instances_and_sounds(setting, schedule):
    source = SyntheticSource("val", setting, schedule)
    for i in range(12):
        clip, scene, instances, sounds = source[i], source.scene(i), source.instances(i), source.sounds(i)
        assert instances.max() <= len(scene.objects)
        visible = {o.class_index for o in scene.objects}
        assert len(visible) == len(scene.objects)
        for k, item in enumerate(scene.objects):
            where = instances == k + 1
            assert where.any((1, 2)).all()
            for t in range(5):
                value = (item.class_index if setting == "semantic" else 1) if item.sounding[t] else 0
                assert (clip["labels"][t][where[t]] == value).all()
                assert sounds[t, item.class_index - 1] == item.sounding[t]
        assert (clip["labels"][instances == 0] == 0).all()
        assert not visible & {o.class_index for o in scene.offscreen}
        for off in scene.offscreen:
            assert (sounds[:, off.class_index - 1] == off.sounding).all()
    if setting == "semantic":
        assert source.class_names == ("background", *source.sound_names) and len(source.class_names) >= 9


def test_objects_stay_visible_and_in_the_frame():
    source = SyntheticSource()
    share = []
    for i in range(60):
        scene, instances = source.scene(i), source.instances(i)
        share += [(instances == k + 1).mean((1, 2)) / (np.pi * o.radius**2) for k, o in enumerate(scene.objects)]
    assert np.min(share) > 0.4 and np.median(share) > 0.95 and np.max(share) < 1.15


def test_schedules():
    persist, second = SyntheticSource("val"), SyntheticSource("val", schedule="per_second")
    silent = {"persist": [], "per_second": []}
    changes = 0
    for i in range(200):
        sounding = np.stack([o.sounding for o in persist.scene(i).objects], 1)
        assert (sounding == sounding[0]).all() and all(o.sounding.all() or not o.sounding.any()
                                                       for o in persist.scene(i).offscreen)  # fmt: skip
        silent["persist"].append(~sounding.any(1).all())
        sounding = np.stack([o.sounding for o in second.scene(i).objects], 1)
        changes += (sounding[1:] != sounding[:-1]).any(1).mean() / 200
        silent["per_second"].append(~sounding.any(1))
    assert changes > 0.6  # a set drawn anew may be the same again
    for values in silent.values():
        assert 0.06 < np.mean(values) < 0.19


def test_gate_keeps_to_the_windows():
    for pattern in itertools.product((False, True), repeat=5):
        envelope = gate(np.array(pattern), np.random.default_rng(0))
        assert envelope.min() >= 0 and envelope.max() <= 1
        for t, on in enumerate(pattern):
            heard = envelope[t * WINDOW : (t + 1) * WINDOW + 240]  # all that example t's analysis frames read
            assert heard.any() == on
            assert not on or heard.mean() > 0.85


def test_the_waveform_sounds_when_the_scene_says_so():
    source = SyntheticSource("val", schedule="per_second")
    floor = DIFFICULTIES["easy"].floor_rms[1]
    for i in range(25):
        windows = source.waveform(i)[: 5 * WINDOW].reshape(5, WINDOW)
        loud = np.sqrt((windows**2).mean(1)) > 4 * floor
        assert (loud == source.sounds(i).any(1)).all()


def test_log_mel_tells_which_classes_sound():
    """A linear read-out of each mel bin's mean and spread over one window ranks windows by every class, on unseen
    clips, with up to four sounds at once."""

    def features(split, n):
        source = SyntheticSource(split, schedule="per_second", length=n)
        audio = np.stack([source.audio(i) for i in range(n)]).reshape(-1, 96, 64)
        change = np.abs(np.diff(audio, axis=1)).mean(1)
        ones = np.ones((len(audio), 1))
        tags = np.concatenate([source.sounds(i) for i in range(n)])
        return np.concatenate([audio.mean(1), audio.std(1), change, ones], 1), tags

    (x, y), (x_test, y_test) = features("train", 160), features("val", 60)
    weights = np.linalg.solve(x.T @ x + 1.0 * np.eye(x.shape[1]), x.T @ (y - 0.5))
    scores = x_test @ weights
    for c in range(y.shape[1]):
        on, off = scores[y_test[:, c], c], scores[~y_test[:, c], c]
        assert (on[:, None] > off).mean() > 0.97  # area under the ROC curve


# Pixels do not tell who sounds


def test_the_frames_do_not_depend_on_the_sound():
    """The same pixels under every schedule of who sounds: what is drawn never reads what sounds."""
    a, b = SyntheticSource("val"), SyntheticSource("val", "semantic", "per_second")
    sounding = []
    for i in range(8):
        assert np.array_equal(a[i]["frames"], b[i]["frames"])
        assert np.array_equal(a.instances(i), b.instances(i))
        sounding.append(not np.array_equal(a.sounds(i), b.sounds(i)))
    assert any(sounding)


def permutation_p_value(features, outcome, groups, rng, trials=400):
    """Share of shuffles of `outcome` within `groups` whose largest |correlation| with a feature, within groups,
    reaches the observed one."""
    order = np.argsort(groups, kind="stable")
    groups, features, outcome = groups[order], features[order], outcome[order].astype(float)
    _, index, size = np.unique(groups, return_inverse=True, return_counts=True)
    for values in features.T:
        values -= (np.bincount(index, values) / size)[index]
    features /= np.linalg.norm(features, axis=0) + 1e-12

    def statistic(values):
        return np.abs(values @ features).max()

    observed = statistic(outcome)
    shuffled = [outcome[np.lexsort((rng.random(len(groups)), groups))] for _ in range(trials)]
    return (1 + sum(statistic(v) >= observed for v in shuffled)) / (1 + trials)


@pytest.fixture(scope="module")
def visible():
    """Every object of 1200 scenes: what can be seen of it, whether it sounds, and its scene."""
    source = SyntheticSource(seed=5)
    rows, sounding, scenes = [], [], []
    for i in range(1200):
        for k, o in enumerate(source.scene(i).objects):
            speed = np.linalg.norm(np.diff(o.center, axis=0), axis=1).mean()
            hue = (o.hue - LOOKS[o.class_index - 1].hue + 0.5) % 1
            look = [o.radius.mean(), np.ptp(o.radius), hue, o.saturation, o.value, *np.eye(8)[o.class_index - 1]]
            rows.append([k, *look, speed, *o.center.mean(0), o.center[0, 0], o.angle.mean(), np.ptp(o.angle)])
            sounding.append(o.sounding[0])
            scenes.append(i)
    return np.array(rows, float), np.array(sounding), np.array(scenes)


def test_nothing_visible_of_an_object_goes_with_sounding(visible):
    features, sounding, scenes = visible
    rng = np.random.default_rng(0)
    assert permutation_p_value(features.copy(), sounding, scenes, rng) > 0.01
    leaky = sounding ^ ((features[:, 1] > np.median(features[:, 1])) & ~sounding & (rng.random(len(sounding)) < 0.25))
    assert permutation_p_value(features.copy(), leaky, scenes, rng) < 0.01  # the test sees a modest leak


def test_nothing_visible_of_a_scene_goes_with_silence():
    source = SyntheticSource(seed=6, image_size=32)
    rows, outcome, counts = [], [], []
    for i in range(400):
        scene = source.scene(i)
        frames = source._draw(scene, i)[0].astype(float)
        rows.append([*frames.mean((0, 1, 2)), *frames.std((0, 1, 2)), np.abs(np.diff(frames, axis=0)).mean(),
                     np.abs(np.diff(frames, axis=2)).mean()])  # fmt: skip
        outcome.append(sum(o.sounding[0] for o in scene.objects))
        counts.append(len(scene.objects))
    rng = np.random.default_rng(0)
    assert permutation_p_value(np.array(rows), np.array(outcome), np.array(counts), rng) > 0.01


@pytest.mark.parametrize("setting", ["single", "multi"])
def test_sounding_sets_follow_the_prior(setting):
    source = SyntheticSource(setting=setting, seed=7)
    seen = {}
    for i in range(1500):
        objects = source.scene(i).objects
        seen.setdefault(len(objects), []).append(sum(int(o.sounding[0]) << k for k, o in enumerate(objects)))
    assert set(seen) == {2, 3}
    for count, sets in seen.items():
        prior = source.sounding_prior(count)
        assert np.isclose(prior.sum(), 1)
        observed = np.bincount(sets, minlength=2**count)
        error = np.sqrt(len(sets) * prior * (1 - prior))
        assert (np.abs(observed - len(sets) * prior) <= 4 * error + 1e-9).all()
        if setting == "multi":
            assert np.isclose(prior[0], DIFFICULTIES["easy"].silent)
            odds = prior[-1] / prior[1]  # all against one alone: each of the others sounds with p, not 1 - p
            assert np.isclose(odds, (0.3 / 0.7) ** (count - 1))


# The video-only ceiling


def j_measure(prediction, truth):
    """AVSBench's J of one frame, from masks."""
    if not truth.any():
        return (~prediction & ~truth).sum() / truth.size
    return (prediction & truth).sum() / ((prediction | truth).sum() + 1e-7)


def test_ceiling_by_brute_force_on_masks():
    """On rendered frames: the ceiling is the best expectation over unions of objects, and no other pixel set beats
    it: halves of objects, objects with a margin of background, random pixels."""
    source = SyntheticSource("val", image_size=32)
    rng = np.random.default_rng(0)
    best = []
    for i in range(4):
        count = len(source.scene(i).objects)
        prior = sounding_prior(count, "multi", DIFFICULTIES["easy"])
        sets = list(itertools.product((0, 1), repeat=count))
        weights = [prior[sum(bit << k for k, bit in enumerate(s))] for s in sets]
        for frame in source.instances(i):
            masks = [np.isin(frame, [k + 1 for k in range(count) if s[k]]) for s in sets]

            def expectation(prediction, masks=masks, weights=weights):
                return sum(w * j_measure(prediction, truth) for w, truth in zip(weights, masks, strict=True))

            best.append(max(map(expectation, masks)))
            others = [m & (rng.random(m.shape) < 0.5) for m in masks] + [rng.random(frame.shape) < 0.3]
            others += [m | (frame == k) & (rng.random(m.shape) < 0.5) for m in masks for k in range(count + 1)]
            assert max(map(expectation, others)) <= best[-1] + 1e-6
    assert np.isclose(video_only_ceiling(source, 4), np.mean(best), atol=1e-6)


@pytest.mark.parametrize("setting,schedule", ALL[:3])
def test_the_ceiling_is_reached_without_sound_and_one_with_it(setting, schedule):
    source = SyntheticSource("test", setting, schedule, length=150, image_size=32)
    ceiling = video_only_ceiling(source)
    assert 0.3 < ceiling < 0.55
    blind, hearing = [], []
    for i in range(len(source)):
        scene, instances, labels = source.scene(i), source.instances(i), source[i]["labels"]
        prior = source.sounding_prior(len(scene.objects))
        scores = []
        for t, frame in enumerate(instances):
            areas = np.bincount(frame.ravel(), minlength=len(scene.objects) + 1)[1:]
            choice = expected_j(areas, prior, frame.size).argmax()
            picked = np.isin(frame, [k + 1 for k in range(len(areas)) if choice >> k & 1])
            scores.append(j_measure(picked, labels[t] > 0))
            heard = {c + 1 for c in np.flatnonzero(source.sounds(i)[t])}
            truth = np.isin(frame, [k + 1 for k, o in enumerate(scene.objects) if o.class_index in heard])
            hearing.append(j_measure(truth, labels[t] > 0))
        blind.append(np.mean(scores))
    assert np.min(hearing) > 1 - 1e-6
    assert abs(np.mean(blind) - ceiling) < 3.5 * np.std(blind) / len(blind) ** 0.5
