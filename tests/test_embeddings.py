"""Embeddings of a frozen audio encoder: computed once, found again by weights and sound, never spoilt."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import listening
import numpy as np
import pytest
import soundfile
from avsbench_tree import write_tree
from avss_tree import write_avss_tree

import avs_jax
from avs_jax import config as configs
from avs_jax import methods
from avs_jax.data.sources.subset import Subset
from avs_jax.errors import InputError
from avs_jax.train import train
from avs_jax.training import build, embedding_cache, embeddings, optimizer
from avs_jax.training.embedding_cache import SoundFiles
from avs_jax.training.embeddings import Embedder, Encoder
from avs_jax.training.state import TrainState
from avs_jax.training.step import make_train_step

CLIPS = 7


@pytest.fixture(scope="module")
def method():
    return listening.create()


@pytest.fixture(scope="module")
def params():
    return listening.parameters()


@pytest.fixture
def tree(tmp_path):
    return write_tree(tmp_path / "data", setting="ms3", clips={"train": CLIPS, "val": 2, "test": 2})


@pytest.fixture
def counts(monkeypatch):
    """Clips that encoders computed, sound files that were read for their checksums."""
    found = {"computed": 0, "read": 0}
    batch, digest = Encoder._batch, embedding_cache.hashlib.file_digest

    def counted_batch(self, audio):
        found["computed"] += len(audio)
        return batch(self, audio)

    def counted_digest(*args):
        found["read"] += 1
        return digest(*args)

    monkeypatch.setattr(Encoder, "_batch", counted_batch)
    monkeypatch.setattr(embedding_cache.hashlib, "file_digest", counted_digest)
    monkeypatch.setattr(embeddings, "WINDOWS", 10)  # two clips a batch
    return found


def source_of(tree, **options):
    return avs_jax.create_source("avsbench", root=str(tree), setting="ms3", image_size=32, **options)


def wav(tree, i=3):
    return tree / "Multi-sources" / "ms3_data" / "audio_wav" / "train" / f"trainclip_{i}.wav"


def embed(method, params, source, folder, *args, **options):
    wrapped = Embedder(method, Path(folder))(params, source, *args, **options)
    return np.stack([wrapped._embeddings[i] for i in range(len(source))])


def exact(method, params, source):
    """What the encoder makes of every clip, from nothing but the clip."""
    encoder = Encoder(method, params["audio"], source.front_end.shape(source.num_frames))
    return np.concatenate([encoder(source.audio(i)[None]) for i in range(len(source))])


def nothing_loads(source):
    """The source, refusing to load a sound."""

    class Mute(type(source)):
        def audio(self, index):
            raise AssertionError(f"the sound of clip {index} was loaded")

    mute = Mute.__new__(Mute)
    mute.__dict__.update(source.__dict__)
    return mute


# ---- Computed once


def test_a_second_run_computes_nothing(method, params, tree, tmp_path, counts, capsys):
    source = source_of(tree)
    first = embed(method, params, source, tmp_path / "cache")
    assert counts["computed"] == CLIPS and first.shape == (CLIPS, 5, listening.WIDTH) and first.std() > 0.01
    assert f"{CLIPS} clips to compute" in (said := capsys.readouterr().out) and f"{CLIPS} computed in" in said
    counts["computed"] = 0
    again = embed(listening.create(channels=9), params, nothing_loads(source), tmp_path / "cache")
    assert counts["computed"] == 0 and again.tobytes() == first.tobytes()
    assert f"{CLIPS} clips, all in {tmp_path / 'cache'}" in capsys.readouterr().out
    np.testing.assert_array_equal(first, exact(method, params, source))
    files = [p for p in (tmp_path / "cache").rglob("*") if p.is_file()]
    assert sorted(p.suffix for p in files) in ([".npy"], [".json", ".npy"])


def test_records_carry_the_embedding_in_place_of_the_sound(method, params, tree, tmp_path):
    source = source_of(tree)
    wrapped = Embedder(method, tmp_path / "cache")(params, source)
    clip = wrapped[2]
    assert clip.keys() == (source[2].keys() - {"audio"}) | {"audio_embedding"}
    np.testing.assert_array_equal(clip["audio_embedding"], exact(method, params, source)[2])
    np.testing.assert_array_equal(clip["frames"], source[2]["frames"])
    assert (len(wrapped), wrapped.ids, wrapped.fingerprint()) == (CLIPS, source.ids, source.fingerprint())


def test_files_that_did_not_change_are_not_read_again(method, params, tree, tmp_path, counts, monkeypatch):
    source = source_of(tree)
    embed(method, params, source, tmp_path / "cache")
    assert counts["read"] == CLIPS
    embed(method, params, source, tmp_path / "cache")
    assert counts["read"] == 2 * CLIPS, "files just written may change within their times' resolution"
    monkeypatch.setattr(embedding_cache, "SETTLED_NS", -1)
    embed(method, params, source, tmp_path / "cache")
    embed(method, params, source, tmp_path / "cache")
    assert counts["read"] == 3 * CLIPS and counts["computed"] == CLIPS


@pytest.mark.parametrize("shape", [(5, 96, 64), (10, 96, 64)])
def test_an_embedding_is_the_same_whatever_else_is_in_its_batch(shape):
    vggish = avs_jax.create_encoder("vggish", width=4, hidden=256)
    audio = jax.jit(vggish.init)(jax.random.key(0), vggish.example_input())["params"]
    method = types.SimpleNamespace(embed_audio=lambda params, windows: vggish.apply({"params": params}, windows))
    x = np.random.default_rng(0).normal(-1, 2, (17, *shape)).astype(np.float32)
    encoder = Encoder(method, audio, shape)
    whole = encoder(x)
    assert whole.shape == (17, shape[0], 128) and encoder.clips * shape[0] == embeddings.WINDOWS and whole.std() > 0.1
    for chosen in ([3], [16, 0, 7], list(range(5, 17)), list(range(16, -1, -1))):
        assert encoder(x[chosen]).tobytes() == whole[chosen].tobytes()
    heard = method.embed_audio(audio, jnp.asarray(x[:1].reshape(-1, 96, 64)))
    np.testing.assert_allclose(whole[0], heard, rtol=1e-4, atol=1e-5)


def test_only_some_clips(method, params, tree, tmp_path, counts):
    source = source_of(tree)
    some = embed(method, params, source, tmp_path / "cache", [5, 1])
    assert counts["computed"] == 2 and (~np.isnan(some).any((1, 2))).nonzero()[0].tolist() == [1, 5]
    whole = embed(method, params, source, tmp_path / "cache")
    assert counts["computed"] == CLIPS
    np.testing.assert_array_equal(whole[[1, 5]], some[[1, 5]])
    np.testing.assert_array_equal(whole, exact(method, params, source))


def test_steps_tell_the_clips_they_need():
    def clips(step):
        return np.array([[0, 3], [2, 1], [3, 4]][step])

    assert embeddings.clips_of(clips, range(1, 3), 5, 2).tolist() == [1, 2, 3, 4]
    assert embeddings.clips_of(clips, range(3, 3), 5, 2).tolist() == []
    assert embeddings.clips_of(clips, range(3), 5, 2) is None


def test_sounds_at_hand_are_not_loaded(method, params, tmp_path):
    source = avs_jax.create_source("synthetic", length=3, image_size=32)
    audio = np.stack([source.audio(i) for i in range(3)])
    found = embed(method, params, nothing_loads(source), tmp_path, audio=audio)
    np.testing.assert_array_equal(found, exact(method, params, source))


# ---- What makes another embedding


def test_a_changed_wav_is_embedded_again(method, params, tree, tmp_path, counts, monkeypatch):
    monkeypatch.setattr(embedding_cache, "SETTLED_NS", -1)
    source, path = source_of(tree), wav(tree)
    before = embed(method, params, source, tmp_path / "cache")
    times = path.stat()
    samples, rate = soundfile.read(path, dtype="int16")
    soundfile.write(path, np.roll(samples, 9000, 0) // 2, rate, subtype="PCM_16")
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))  # as a copying tool would
    assert path.stat().st_size == times.st_size
    counts.update(computed=0, read=0)
    after = embed(method, params, source, tmp_path / "cache")
    assert counts == {"computed": 1, "read": 1}
    assert not np.array_equal(before[3], after[3])
    np.testing.assert_array_equal(np.delete(before, 3, 0), np.delete(after, 3, 0))
    np.testing.assert_array_equal(after, exact(method, params, source))


def test_a_wav_that_changes_while_it_is_loaded_is_not_kept(method, params, tree, tmp_path, counts):
    source, path = source_of(tree), wav(tree)
    load = source.audio

    def meddled(index):
        if index == 3:
            samples, rate = soundfile.read(path)
            soundfile.write(path, samples / 2, rate)
        return load(index)

    source.audio = meddled
    embed(method, params, source, tmp_path / "cache")
    source.audio, counts["computed"] = load, 0
    after = embed(method, params, source, tmp_path / "cache")
    assert counts["computed"] == 1
    np.testing.assert_array_equal(after, exact(method, params, source))


def test_equal_sounds_are_computed_once(method, params, tree, tmp_path, counts):
    shutil.copy(wav(tree, 0), wav(tree, 4))
    found = embed(method, params, source_of(tree), tmp_path / "cache")
    assert counts["computed"] == CLIPS - 1
    np.testing.assert_array_equal(found[0], found[4])


@pytest.mark.parametrize("change", ["bit", "name", "program", "dtype"])
def test_another_encoder_has_embeddings_of_its_own(change, method, params, tree, tmp_path, counts):
    source = source_of(tree)
    before = embed(method, params, source, tmp_path / "cache")
    other = {"audio": {name: value.copy() for name, value in params["audio"].items()}}
    if change == "bit":
        other["audio"]["out"].view(np.uint32)[3, 2] ^= 1
    elif change == "name":
        other["audio"]["unused"] = np.zeros(1, np.float32)
    elif change == "dtype":
        other["audio"]["out"] = other["audio"]["out"].astype(jnp.bfloat16)
    else:
        method = dataclasses.replace(method, embed_audio=lambda p, x: listening.embed_audio(p, x) * 2)
    after = embed(method, other, source, tmp_path / "cache")
    assert counts["computed"] == 2 * CLIPS and len(list((tmp_path / "cache").glob("*/*.npy"))) == 2
    np.testing.assert_array_equal(after, exact(method, other, source))
    if change == "program":
        np.testing.assert_array_equal(after, 2 * before)


def test_origins_follow_what_a_sound_is_made_from(tmp_path):
    files = SoundFiles(tmp_path / "files.json")

    def key(source, index=0):
        return embedding_cache.origin(source, index, files).key

    def synthetic(**options):
        return avs_jax.create_source("synthetic", **{"length": 4, "image_size": 32, **options})

    same = key(synthetic())
    assert key(synthetic(length=9)) == same
    changes = ("seed", 1), ("split", "val"), ("setting", "single"), ("schedule", "per_second"), ("difficulty", "hard")
    assert len({same, key(synthetic(), 1), *(key(synthetic(**{name: value})) for name, value in changes)}) == 7
    assert np.array_equal(synthetic().audio(0), synthetic(length=9).audio(0))
    subset = Subset(synthetic(), [2, 0])
    assert key(subset, 1) == same

    root = write_tree(tmp_path / "ms3", setting="ms3", sound="both")
    wavs, pickles = source_of(root, sound="wav"), source_of(root, sound="log_mel")
    assert key(wavs) != key(pickles) == key(source_of(root, sound="auto"))
    assert key(wavs) != key(source_of(root, sound="wav", resampler="soxr_hq"))

    root = write_avss_tree(tmp_path / "avss")
    source = avs_jax.create_source("avsbench", setting="avss", root=str(root), image_size=32)
    short, long = source.parts.index("v1s"), source.parts.index("v2")
    assert source.audio_origin(short)[1].read_bytes()
    assert source.audio_origin(short)[0] != source.audio_origin(long)[0], "absent seconds are silenced"


def test_a_source_that_cannot_tell_is_asked_for_its_sound(method, params, tmp_path, counts):
    class Plain:
        """Only what the protocol demands."""

        ids, num_frames, front_end = ("a", "b"), 5, avs_jax.create_source("synthetic").front_end
        gain = 1.0

        def __len__(self):
            return 2

        def audio(self, index):
            return np.full((5, 96, 64), self.gain * (index + 1), np.float32)

    source = Plain()
    first = embed(method, params, source, tmp_path)
    assert embed(method, params, Subset(Whole(source), [1, 0]), tmp_path).tobytes() == first[::-1].tobytes()
    assert counts["computed"] == 2
    source.gain = 2.0
    second = embed(method, params, source, tmp_path)
    assert counts["computed"] == 3, "clip 0 now sounds as clip 1 did"
    np.testing.assert_array_equal(second[0], first[1])


class Whole:
    """A source with the fields a subset copies."""

    image_size, class_names = (32, 32), ("background", "sounding")

    def __init__(self, source):
        self.ids, self.num_frames, self.front_end = source.ids, source.num_frames, source.front_end
        self.audio, self.__class__.__len__ = source.audio, lambda self: len(source)


# ---- Damage, kills, company


@pytest.mark.parametrize("how", ["flip", "cut", "empty", "foreign"])
def test_damaged_embeddings_are_told_of_and_computed_again(how, method, params, tree, tmp_path, counts, capsys):
    source = source_of(tree)
    first = embed(method, params, source, tmp_path / "cache")
    (path,) = (tmp_path / "cache").glob("*/*.npy")
    content = bytearray(path.read_bytes())
    if how == "flip":
        content[-5] ^= 4
    elif how == "foreign":
        path.unlink()
        content = np.lib.format.magic(1, 0) + b"nothing that numpy wrote"
        path = path.with_name(f"{embedding_cache._checksum(content)}.npy")
    path.write_bytes({"cut": content[: len(content) // 2], "empty": b""}.get(how, content))
    counts["computed"] = 0
    again = embed(method, params, source, tmp_path / "cache")
    assert counts["computed"] == CLIPS and again.tobytes() == first.tobytes()
    assert f"{path} is damaged" in capsys.readouterr().err
    embed(method, params, source, tmp_path / "cache")
    assert counts["computed"] == CLIPS and "damaged" not in capsys.readouterr().err


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b'{"a": 1, "b": [0]}', b"\xff\xfe"])
def test_a_damaged_list_of_sound_files_costs_only_their_reading(content, method, params, tree, tmp_path, counts, capsys,
                                                                monkeypatch):  # fmt: skip
    monkeypatch.setattr(embedding_cache, "SETTLED_NS", -1)
    source = source_of(tree)
    embed(method, params, source, tmp_path)
    path = tmp_path / "sound-files.json"
    assert len(json.loads(path.read_text())) == CLIPS
    path.write_bytes(content)
    capsys.readouterr()
    embed(method, params, source, tmp_path)
    assert ("damaged" in capsys.readouterr().err) == (content[:1] != b"{" or len(content) == 1)
    assert counts == {"computed": CLIPS, "read": 2 * CLIPS} and len(json.loads(path.read_text())) >= CLIPS


def test_a_run_that_dies_keeps_what_it_had(method, params, tree, tmp_path, counts, monkeypatch):
    monkeypatch.setattr(embeddings, "PART", 2)
    source, batch = source_of(tree), Encoder._batch

    def dying(self, audio):
        if counts["computed"] >= 4:
            raise KeyboardInterrupt
        return batch(self, audio)

    monkeypatch.setattr(Encoder, "_batch", dying)
    with pytest.raises(KeyboardInterrupt):
        embed(method, params, source, tmp_path / "cache")
    monkeypatch.setattr(Encoder, "_batch", batch)
    assert len(list((tmp_path / "cache").glob("*/*.npy"))) == 2
    counts["computed"] = 0
    np.testing.assert_array_equal(embed(method, params, source, tmp_path / "cache"), exact(method, params, source))
    assert counts["computed"] == CLIPS - 4 + CLIPS  # `exact` computes all


KILLED = """
import sys, time
import avs_jax, listening
from avs_jax.training import embeddings
from pathlib import Path

embeddings.PART, embeddings.WINDOWS = 1, 5
source = avs_jax.create_source("synthetic", length=40, image_size=32)
load = source.audio
source.audio = lambda i: (time.sleep(0.05 * (i > 6)), load(i))[1]
embeddings.Embedder(listening.create(), Path(sys.argv[1]))(listening.parameters(), source)
"""


def test_a_run_that_is_killed_spoils_nothing(method, params, tmp_path, counts, capsys, monkeypatch):
    path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path)], env={**os.environ, "PYTHONPATH": path})
    deadline = time.monotonic() + 120
    while len(list(tmp_path.glob("*/*.npy"))) < 3 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    source = avs_jax.create_source("synthetic", length=40, image_size=32)
    monkeypatch.setattr(embeddings, "WINDOWS", 5)
    again = embed(method, params, source, tmp_path)
    assert 0 < counts["computed"] <= 37 and "damaged" not in capsys.readouterr().err
    np.testing.assert_array_equal(again, exact(method, params, source))


def test_runs_that_write_at_once(method, params, tree, tmp_path, counts, capsys, monkeypatch):
    monkeypatch.setattr(embeddings, "PART", 2)
    monkeypatch.setattr(embedding_cache, "SETTLED_NS", -1)
    found = {}

    def run(name):
        order = np.random.default_rng(name).permutation(CLIPS)
        found[name] = embed(method, params, source_of(tree), tmp_path / "cache", order)

    threads = [threading.Thread(target=run, args=(name,)) for name in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    truth = exact(method, params, source_of(tree))
    assert len(found) == 4 and all(f.tobytes() == truth.tobytes() for f in found.values())
    counts["computed"] = 0
    again = embed(method, params, source_of(tree), tmp_path / "cache")
    assert counts["computed"] == 0 and again.tobytes() == truth.tobytes()
    assert "damaged" not in capsys.readouterr().err


def test_parts_are_put_together(method, params, tree, tmp_path, monkeypatch, counts):
    monkeypatch.setattr(embeddings, "PART", 2)
    source = source_of(tree)
    embed(method, params, source, tmp_path / "cache", [0])
    embed(method, params, source, tmp_path / "cache")
    assert len(list((tmp_path / "cache").glob("*/*"))) == 2, "one file a run"
    embed(method, params, nothing_loads(source), tmp_path / "cache")
    assert counts["computed"] == CLIPS


def test_asked_to_stop(method, params, tree, tmp_path, counts):
    source = source_of(tree)
    found = embed(method, params, source, tmp_path / "cache", stop=lambda: counts["computed"] >= 2)
    assert counts["computed"] == 2 and np.isnan(found[2:]).all() and not np.isnan(found[:2]).any()
    embed(method, params, source, tmp_path / "cache")
    assert counts["computed"] == CLIPS


@pytest.mark.parametrize("bad", ["missing", "broken"])
def test_a_bad_sound_is_named_and_the_rest_is_kept(bad, method, params, tree, tmp_path, counts):
    if bad == "missing":
        wav(tree, 6).unlink()
    else:
        wav(tree, 6).write_bytes(b"no sound")
    with pytest.raises(InputError, match="trainclip_6"):
        embed(method, params, source_of(tree), tmp_path / "cache")
    assert counts["computed"] == (0 if bad == "missing" else 6)
    embed(method, params, Subset(source_of(tree), range(6)), tmp_path / "cache")
    assert counts["computed"] == 6


def test_a_folder_that_cannot_be_written_is_told_of(method, params, tree, tmp_path, capsys):
    (tmp_path / "cache").write_text("a file")
    source = source_of(tree)
    found = embed(method, params, source, tmp_path / "cache")
    assert "audio embeddings are not kept" in capsys.readouterr().err
    np.testing.assert_array_equal(found, exact(method, params, source))


def test_progress_tells_rate_and_time_left(method, params, tree, tmp_path, counts, capsys, monkeypatch):
    monkeypatch.setattr(embeddings, "SHOWN_AFTER", 0.0)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    embed(method, params, source_of(tree), tmp_path / "cache")
    shown = capsys.readouterr().err
    assert "audio embeddings:   0%" in shown and f"/{CLIPS}" in shown and "clip" in shown


# ---- In a run


def recipe(folder, **changes):
    c = configs.defaults()
    c.steps, c.batch_size, c.seed = 4, 2, 1
    c.method.name = "listening"
    c.data.update(source="synthetic", image_size=32)
    c.data.train.length = c.data.eval.length = 6
    c.checkpoint.every_steps, c.log.every_steps, c.log.tensorboard = 2, 1, False
    c.loader.embeddings = str(folder)
    c.update_from_flattened_dict({k.replace("__", "."): v for k, v in changes.items()})
    return c


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    monkeypatch.setitem(methods.METHODS, "listening", "listening")


def test_when_sounds_are_embedded(tmp_path):
    def embedder(**changes):
        c = recipe(tmp_path, **changes)
        method, source = build.build_method(c), build.build_source(c, "train")
        example = build.example_batch(source)
        params = method.init(jax.random.key(0), example)["params"]
        trainable = optimizer.trainable(c.optimizer, method.param_groups(params))
        return embeddings.embedder(c, method, trainable, example)

    assert embedder().folder == tmp_path
    assert embedder(loader__embeddings="auto").folder == Path.home() / ".cache" / "avs_jax" / "embeddings"
    assert embedder(loader__embeddings="") is None
    assert embedder(method__trained=True) is None
    assert embedder(method__deaf=True) is None
    assert embedder(method__trained=True, optimizer__groups__audio=0.0) is not None


def test_runs_share_embeddings_and_resume_to_the_same_bits(tmp_path, counts, capsys):
    cache = tmp_path / "cache"
    whole = train(recipe(cache), tmp_path / "whole")
    assert counts["computed"] == 6 + 6, "training and evaluation"

    counts["computed"] = 0
    part = tmp_path / "part"
    shutil.copytree(tmp_path / "whole", part)
    shutil.rmtree(part / "checkpoints" / "4")  # as if killed before the last save
    resumed = train(recipe(cache), part)
    assert counts["computed"] == 0
    shutil.copytree(part, tmp_path / "bare")
    shutil.rmtree(tmp_path / "bare" / "checkpoints" / "4")
    computed = train(recipe(tmp_path / "another cache"), tmp_path / "bare")
    assert counts["computed"] == 4 + 6, "the clips of two steps"
    for result, folder in ((resumed, part), (computed, tmp_path / "bare")):
        for a, b in zip(jax.tree.leaves(whole.state), jax.tree.leaves(result.state), strict=True):
            assert np.asarray(a).tobytes() == np.asarray(b).tobytes()
        assert (folder / "metrics.jsonl").read_bytes() == (tmp_path / "whole" / "metrics.jsonl").read_bytes()

    counts["computed"] = 0
    train(recipe(cache, method__channels=5, optimizer__lr=0.02), tmp_path / "another backbone")
    assert counts["computed"] == 0

    capsys.readouterr()
    heard = train(recipe("", eval__best="fscore"), tmp_path / "heard")
    assert counts["computed"] == 0 and "audio embeddings" not in capsys.readouterr().out
    for a, b in zip(jax.tree.leaves(whole.state.params), jax.tree.leaves(heard.state.params), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
    assert heard.figures == pytest.approx(whole.figures, nan_ok=True)


def test_a_step_leaves_every_bit_of_the_encoder(method):
    c = recipe("", optimizer__ema=0.5, optimizer__weight_decay=0.1, optimizer__clip_norm=1.0)
    variables = method.init(jax.random.key(0))
    variables["params"]["audio"]["out"] = variables["params"]["audio"]["out"].at[0].set(-0.0)
    before = [np.array(x) for x in jax.tree.leaves(variables["params"])]
    labels = method.param_groups(variables["params"])
    tx, trainable = optimizer.make_optimizer(c.optimizer, labels, 10), optimizer.trainable(c.optimizer, labels)
    rate = optimizer.learning_rate(c.optimizer, 10)
    step = jax.jit(make_train_step(method, tx, trainable=trainable, learning_rate=rate, seed=0, ema=0.5))
    state, _ = step(TrainState.create(variables, tx, ema=True), build.example_batch(build.build_source(c, "train")))
    for tree in (state.params, state.ema):
        same = [np.asarray(a).tobytes() == b.tobytes() for a, b in zip(jax.tree.leaves(tree), before, strict=True)]
        assert same == jax.tree.leaves(jax.tree.map(lambda t: not t, trainable)) and len(set(same)) == 2


def test_a_short_run_embeds_what_it_needs(tmp_path, counts):
    train(recipe(tmp_path / "cache", steps=1, data__train__length=9, loader__prefetch=6), tmp_path / "run")
    assert counts["computed"] == 2 + 6


def test_swapped_sounds_are_heard_in_evaluation(tmp_path, counts):
    result = train(recipe(tmp_path / "cache", eval__best="j_swap"), tmp_path / "run")
    assert counts["computed"] == 6 and {"j_swap", "audio_gain"} <= result.figures.keys()


def test_interrupted_while_embedding(tmp_path, counts, monkeypatch):
    batch = Encoder._batch

    def interrupted(self, audio):
        os.kill(os.getpid(), signal.SIGTERM)
        return batch(self, audio)

    monkeypatch.setattr(Encoder, "_batch", interrupted)
    result = train(recipe(tmp_path / "cache"), tmp_path / "run")
    assert result.stopped_by == signal.SIGTERM and result.figures is None and int(result.state.step) == 0
    assert counts["computed"] == 2
    monkeypatch.setattr(Encoder, "_batch", batch)
    assert train(recipe(tmp_path / "cache"), tmp_path / "run").stopped_by == 0
    assert counts["computed"] == 12
