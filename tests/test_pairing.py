"""Whose sound is heard with which clip: the reference's pairs, what holds for all pairs, batches that carry them."""

import itertools
import pickle

import goldens
import numpy as np
import pytest
from test_pipeline import Numbers, assert_equal

from avs_jax.data import pairing, pipeline
from avs_jax.data.pairing import Pairing, balance, matches
from avs_jax.errors import InputError


@pytest.fixture(scope="module")
def golden():
    return goldens.load("cavp_pairing")


# ------------------------------------------------------------------------------------- the reference


@pytest.mark.parametrize("case", ["ss50", "ss90", "ms50"])
def test_golden_pairs(golden, case):
    g = {k.split("/")[1]: v for k, v in golden.items() if k.startswith(case + "/")}
    before = matches(g["image_label"], g["shuffle"], "exact")
    np.testing.assert_array_equal(before.matched, g["match_before"])
    after = balance(before, g["image_label"], g["rate"])
    np.testing.assert_array_equal(after.matched, g["match_after"])
    np.testing.assert_array_equal(after.match, np.repeat(g["match_after"][:, None], 6, 1))
    np.testing.assert_array_equal(after.replaced, g["replaced"])
    if case.startswith("ss"):  # with one class in every clip the rules are one
        ours = balance(matches(g["image_label"], g["shuffle"], "class"), g["image_label"], g["rate"])
        np.testing.assert_array_equal(ours.matched, after.matched)
        np.testing.assert_array_equal(ours.replaced, after.replaced)


def test_golden_bank(golden):
    bank = np.zeros((6, 3, 4), np.float32)
    for waves, classes in zip(golden["bank/waves"][:, :, 0], golden["bank/labels"], strict=True):
        bank = pairing.push(bank, waves, classes)
    np.testing.assert_array_equal(bank, golden["bank/final"])
    for row, label in ((0, 1), (2, 3)):
        np.testing.assert_array_equal(pairing.oldest(bank, label), golden["bank/overwritten"][row, 0])


# ------------------------------------------------------------------------------------- the rules


def test_paper_rule_goes_class_by_class():
    classes = np.array([[1, 1, 1, 0], [1, 0, 1, 1], [1, 0, 0, 0]], bool)
    found = matches(classes, np.array([1, 2, 0]))
    np.testing.assert_array_equal(found.match, [[1, 0, 1, 1], [1, 0, 0, 0], [1, 1, 1, 0]])
    np.testing.assert_array_equal(found.matched, [False, False, True])  # nothing sounds in the last: nothing to lose
    exact = matches(classes, np.array([0, 2, 1]), "exact")
    np.testing.assert_array_equal(exact.match.any(1), [True, False, False])


@pytest.fixture(scope="module")
def table():
    """40 clips of 4 classes and background: mostly one class, some two, one clip alone of class 4."""
    r = np.random.default_rng(0)
    classes = np.zeros((40, 5), bool)
    classes[:, 0] = True
    classes[np.arange(40), r.integers(1, 4, 40)] = True
    classes[:8, 2] = True
    classes[39] = [1, 0, 0, 0, 1]
    return classes


@pytest.mark.parametrize("rule", ["class", "exact"])
def test_pairs_are_what_they_say(table, rule):
    draw, r = Pairing(table, seed=1, rule=rule), np.random.default_rng(2)
    for step in range(50):
        clips = r.choice(40, 12, replace=False)
        sounds, match = draw(step, clips)
        image, heard = table[clips], table[sounds]
        if rule == "class":
            np.testing.assert_array_equal(match & image, image & heard)
        else:
            np.testing.assert_array_equal(match.all(1), (image == heard).all(1))
            np.testing.assert_array_equal(match.all(1), match.any(1))


@pytest.mark.parametrize(
    "rate, low, high", [(0.0, 0, 0), (0.1, 0.0, 0.1), (0.5, 0.4, 0.5), (0.9, 0.8, 0.9), (1.0, 1, 1)]
)
def test_rate_is_the_share_of_mismatches_that_are_turned(table, rate, low, high):
    single, r = table.copy(), np.random.default_rng(0)
    single[:8] = np.eye(5, dtype=bool)[[1, 2, 3, 1, 2, 3, 1, 2]]
    single[:, 0] = True
    turned = mismatched = 0
    for step in range(200):
        clips = r.choice(40, 16, replace=False)
        before = Pairing(single, rate=0.0)(step, clips)
        after = Pairing(single, rate=rate)(step, clips)
        missing = [~(single[clips] & ~m)[:, 1:].any(1) for _, m in (before, after)]
        turned += int((missing[1] & ~missing[0]).sum())
        mismatched += int((~missing[0]).sum())
        assert not (missing[0] & ~missing[1]).any()
    assert low <= turned / mismatched <= high


def test_replacement_is_another_clip_of_the_class_where_there_is_one(table):
    draw, seen = Pairing(table, rate=1.0), set()
    for step in range(300):
        sounds, match = draw(step, [39, 20, 21, 22])
        assert match[0, 4] and sounds[0] == 39  # the only one of its class is its own
        image, heard = table[[20, 21, 22]], table[sounds[1:]]
        np.testing.assert_array_equal(image, heard)
        seen.update(sounds[1:].tolist())
    alone = np.flatnonzero(table[:, 1:].sum(1) == 1)
    of_classes = {int(i) for i in alone if (table[i] == table[[20, 21, 22]]).all(1).any()}
    assert seen <= of_classes | {20, 21, 22} and len(seen) > len(of_classes) * 0.9


def test_pairs_depend_on_seed_and_step_alone(table):
    draw, clips = Pairing(table, seed=5), np.arange(0, 32, 2)
    again = pickle.loads(pickle.dumps(draw))
    for step in (7, 3, 7):
        for a, b in zip(draw(step, clips), again(step, clips), strict=True):
            np.testing.assert_array_equal(a, b)
    assert (draw(3, clips)[0] != draw(4, clips)[0]).any()
    assert (draw(3, clips)[0] != Pairing(table, seed=6)(3, clips)[0]).any()


@pytest.mark.parametrize(
    "options, where",
    [({"rule": "exactly"}, "rule"), ({"rate": 1.5}, "rate"), ({"classes": np.ones(4, bool)}, "classes")],
    ids=str,
)
def test_bad_options_are_refused(table, options, where):
    with pytest.raises(InputError, match=where):
        Pairing(**({"classes": table} | options))


# ------------------------------------------------------------------------------------- in batches


class Sounding(Numbers):
    """As Numbers, with labels of three classes; a clip's sound is its number."""

    class_names = ("background", "one", "two", "three")

    def __getitem__(self, i):
        clip = super().__getitem__(i)
        labels = np.where(clip["labels"] == 1, 1 + i % 3, 0).astype(np.uint8)
        labels[0, 0, 0] = 255
        return clip | {"labels": labels}

    def audio(self, i):
        return self[i]["audio"]

    def visual(self, i):
        return {k: v for k, v in self[i].items() if k != "audio"}


class Telling(Sounding):
    sound_names = ("three", "one")

    def sounds(self, i):
        return np.array([[i == 0, False], [False, i < 2]])


def test_class_table():
    np.testing.assert_array_equal(
        pairing.class_table(Sounding(7)), np.eye(4, dtype=bool)[1 + np.arange(7) % 3] | [1, 0, 0, 0]
    )
    np.testing.assert_array_equal(pairing.class_table(Telling(3)), [[1, 1, 0, 1], [1, 1, 0, 0], [1, 0, 0, 0]])

    class Wrong(Sounding):
        class_names = ("background", "one")

    with pytest.raises(InputError, match="clip 'clip1', field 'labels'"):
        pairing.class_table(Wrong(3))


@pytest.fixture(scope="module")
def source():
    return Sounding(10)


def take(source, count, **options):
    draw = Pairing(pairing.class_table(source), seed=3)
    options = {"seed": 3, "batch_size": 4, "augment": {"hflip": 0.5}, "threads": 0, "pairing": draw} | options
    batches = pipeline.train_batches(source, **options)
    try:
        return list(itertools.islice(batches, count))
    finally:
        batches.close()


def test_batches_carry_the_other_sound(source):
    hard = 0
    for batch in take(source, 8):
        assert batch["audio_shuffled"].shape == batch["audio"].shape and batch["audio_shuffled"].dtype == np.float32
        assert batch["match"].shape == (4, 4) and batch["match"].dtype == bool
        shown, heard = (1 + x % 3 for x in (batch["index"], batch["audio_shuffled"][:, 0, 0].astype(int)))
        np.testing.assert_array_equal(batch["match"][np.arange(4), shown], shown == heard)
        hard += (shown != heard).sum()
    assert 0 < hard < 20
    plain = take(source, 8, pairing=None)
    assert_equal(plain, [{k: b[k] for k in plain[0]} for b in take(source, 8)])  # nothing else changes


@pytest.mark.parametrize("options", [{"threads": 3}, {"workers": 2}], ids=str)
def test_resumes_exactly(source, options):
    whole = take(source, 9)
    assert_equal(whole[5:], take(source, 4, start_step=5, **options))
    assert_equal(whole[5:], take(pipeline.Cached(source), 4, start_step=5))


class Panned(Sounding):
    """In stereo: left is the clip's number, right another."""

    def __getitem__(self, i):
        clip = super().__getitem__(i)
        return clip | {"audio": np.tile(np.float32([[[i], [-1 - i]]]), (1, 1, 5))}


def test_only_a_clips_own_sound_follows_its_flip():
    def pairing_of_self(step, clips):
        heard = np.where(np.arange(len(clips)) % 2, clips, (clips + 1) % 10)  # every second one its own
        return heard, np.ones((len(clips), 4), bool)

    plain = take(Panned(10), 6, augment={"hflip": 0.0}, pairing=pairing_of_self)
    turned = 0
    for batch, before in zip(take(Panned(10), 6, pairing=pairing_of_self), plain, strict=True):
        flipped = (batch["audio"] != before["audio"]).any((1, 2, 3))
        np.testing.assert_array_equal(batch["audio"][flipped], before["audio"][flipped][:, :, ::-1])
        np.testing.assert_array_equal(batch["audio_shuffled"][1::2], batch["audio"][1::2])
        np.testing.assert_array_equal(batch["audio_shuffled"][::2], before["audio_shuffled"][::2])
        turned += flipped[::2].sum() * flipped[1::2].sum()
    assert turned > 0


def test_processes_share_the_same_pairs(source):
    parts = [take(source, 2, process_index=p, process_count=2) for p in range(2)]
    joined = [{k: np.concatenate([b[k] for b in step]) for k in step[0]} for step in zip(*parts, strict=True)]
    assert_equal(take(source, 2), joined)


def test_cached_embeddings_cannot_be_paired(source):
    class Embedded(Sounding):
        def __getitem__(self, i):
            clip = super().__getitem__(i)
            return {("audio_embedding" if k == "audio" else k): v for k, v in clip.items()}

    with pytest.raises(InputError, match="field 'audio'"):
        take(Embedded(10), 1, pairing=Pairing(pairing.class_table(source)))


def test_binary_labels_stay_where_the_sound_holds_all_of_their_classes():
    classes = np.array([[1, 1, 0, 0], [1, 0, 1, 0], [1, 1, 1, 0], [1, 0, 0, 0], [1, 1, 0, 0]], bool)
    clips, seen = np.arange(5), set()
    for step in range(20):
        for rule in ("class", "exact"):
            sounds, match = Pairing(classes, rule=rule, rate=0.0, binary=True)(step, clips)
            assert match.shape == (5, 2) and match[:, 0].all()
            for i, j in enumerate(sounds):
                same = (classes[i] == classes[j]).all()
                assert match[i, 1] == (same if rule == "exact" else not (classes[i] & ~classes[j]).any())
                seen.add((rule, bool(match[i, 1]), bool(same)))
    assert ("class", True, False) in seen and ("class", False, False) in seen


def test_classes_of_binary_labels_are_those_of_the_sounds():
    from avs_jax.data.sources import create_source

    source = create_source("synthetic", setting="multi", still=True, length=6)
    table = pairing.class_table(source)
    assert table.shape == (6, 9) and table[:, 0].all()
    np.testing.assert_array_equal(table[:, 1:], [source.sounds(i)[0] for i in range(6)])


def test_identity_tells_pairings_apart(source):
    def identity(**options):
        draw = Pairing(pairing.class_table(source), **options) if options else None
        return pipeline.identity(source, seed=3, batch_size=4, pairing=draw)

    assert "pairing" not in identity()
    assert pipeline.difference(identity(rate=0.5), identity(rate=0.9)) == ("pairing.rate", 0.5, 0.9)
