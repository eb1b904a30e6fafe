"""Attention maps and t-SNE of a tiny network: the numbers they rest on, the two commands end to end, bad input."""

import dataclasses
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from PIL import Image
from toy import VARIABLES, ToySource, toy_method

from avs_jax import config as configs
from avs_jax import explain, pictures
from avs_jax.errors import InputError
from avs_jax.explanation import clusters, drawing, features, space
from avs_jax.explanation.features import masked_features
from avs_jax.explanation.inputs import choose_clips, open_run, pick_stages
from avs_jax.training import build
from avs_jax.training.checkpoint import Checkpoints, load_checkpoint
from avs_jax.training.state import TrainState


def recipe(fusion="va", length=6):
    config = configs.defaults()
    config.data.update(source="synthetic", image_size=32, difficulty="easy")
    config.data.train.length, config.data.eval.length, config.data.test.length = 4, 2, length
    config.method.update(setting="ms3", backbone="resnet10", width=4, channels=8, head_channels=(4, 4),
                         neck_dilations=(1, 2), audio_width=2, audio_hidden=16, fusion=fusion)  # fmt: skip
    config.steps, config.batch_size, config.log.tensorboard = 1, 2, False
    return config


def workdir(folder, fusion):
    """A workdir as training writes it before its first step: training takes half a minute to compile."""
    config = recipe(fusion)
    method = build.build_method(config)
    checkpoints = Checkpoints(folder, keep=1, best=config.eval.best)
    state = TrainState.create(jax.jit(lambda: method.init(jax.random.key(0)))(), optax.identity())
    checkpoints.save(0, state, identity={"config": build.identity(config), "data": {}})
    checkpoints.close()
    build.save_config(config, folder)
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Three workdirs: one that hears, one without sound, one whose pixels attend to pixels."""
    return {kind: workdir(tmp_path_factory.mktemp(kind), kind) for kind in ("va", "none", "vv")}


def pixels(path):
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


# ------------------------------------------------------------------------------------------------ numbers


def test_features_are_what_the_network_makes(runs):
    method, variables = load_checkpoint(runs["va"])
    clip = build.build_source(recipe(), "test")[0]
    found = method.features(variables, {k: clip[k][None] for k in ("frames", "audio")})
    assert {k: v.shape for k, v in found["visual"].items()} == {
        f"stage{n}": (1, 5, side, side, 8) for n, side in ((1, 8), (2, 4), (3, 2), (4, 1))
    }
    assert {k: v.shape[2] for k, v in found["audio"].items()} == {"embedding": 128} | dict.fromkeys(found["visual"], 8)
    assert all((v >= 0).all() for v in found["visual"].values())
    embedding = method.embed_audio(variables["params"]["audio"], clip["audio"])
    np.testing.assert_allclose(found["audio"]["embedding"][0], embedding, rtol=1e-5, atol=1e-6)
    again = method.features(variables, {"frames": clip["frames"][None], "audio_embedding": np.asarray(embedding)[None]})
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(again), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_features_of_a_network_without_sound(runs):
    method, variables = load_checkpoint(runs["none"])
    clip = build.build_source(recipe(), "test")[0]
    found = method.features(variables, {"frames": clip["frames"][None]})
    assert list(found["visual"]) == ["stage1", "stage2", "stage3", "stage4"] and found["audio"] == {}


def test_masked_mean():
    rng = np.random.default_rng(0)
    features = rng.normal(size=(1, 2, 2, 3, 4)).astype(np.float32)
    mask = np.zeros((1, 2, 8, 6), bool)
    mask[0, 0, :4, :2] = True  # all of cell (0, 0)
    mask[0, 0, 4:6, 4:] = True  # half of cell (1, 2)
    mean, area = space.masked_mean(features, mask)
    np.testing.assert_allclose(mean[0, 0], (features[0, 0, 0, 0] + features[0, 0, 1, 2] / 2) / 1.5, rtol=1e-5)
    np.testing.assert_allclose(area, [[1.5 / 6, 0]], rtol=1e-6)
    assert not mean[0, 1].any()


def test_ranking():
    rng = np.random.default_rng(0)
    values, truth = rng.integers(0, 9, (3, 7)).astype(float), rng.random((3, 7)) < 0.4  # with ties
    inside, outside = values[truth][:, None], values[~truth]
    expected = ((inside > outside) + 0.5 * (inside == outside)).mean()
    assert space.ranking(values, truth) == pytest.approx(expected)
    assert space.ranking(-values, truth) == pytest.approx(1 - expected)
    assert np.isnan(space.ranking(values, np.ones_like(truth)))


def test_agreement_is_between_clips():
    rng = np.random.default_rng(0)
    kinds = np.repeat(np.arange(8) % 2, 5)  # of 8 clips of 5 frames
    clips = np.repeat(np.arange(8), 5)
    features = kinds[:, None] * 100 + rng.normal(size=(40, 3))
    found = space.agreement(features, kinds, clips)
    assert found.share == 1 and found.interval == (1, 1)
    assert found.chance == pytest.approx(15 / 35)  # of the 35 frames of other clips, 3 clips are of one's kind
    alone = space.agreement(clips[:, None] * 100.0 + rng.normal(size=(40, 3)), clips, clips)
    assert alone.share == 0 and alone.chance == 0  # each clip sounds otherwise, its own frames do not count
    mixed = space.agreement(rng.normal(size=(40, 3)), kinds, clips)
    assert mixed.interval[0] < mixed.share < mixed.interval[1] and abs(mixed.share - mixed.chance) < 0.2
    assert np.isnan(space.agreement(features[:5], kinds[:5], clips[:5]).share)


def test_agreement_counts_five_neighbours_by_hand():
    rng = np.random.default_rng(1)
    features, kinds, clips = rng.normal(size=(30, 2)), rng.integers(0, 3, 30), rng.integers(0, 7, 30)
    shares = []
    for i in range(30):
        others = np.flatnonzero(clips != clips[i])
        near = others[np.argsort(np.linalg.norm(features[others] - features[i], axis=1))[:5]]
        shares.append((kinds[near] == kinds[i]).mean())
    assert space.agreement(features, kinds, clips).share == pytest.approx(np.mean(shares))


def blobs():
    rng = np.random.default_rng(0)
    kinds = np.array([0] * 6 + [1] * 14 + [2] * 10)
    return kinds, np.eye(3)[kinds] * 50 + rng.normal(size=(30, 3))


def test_clusters_are_numbered_by_size():
    kinds, features = blobs()
    np.testing.assert_array_equal(space.cluster(features, 3), np.array([2, 0, 1])[kinds])
    assert space.cluster(np.ones((4, 2)), 3).tolist() == [0, 0, 0, 0]  # no more clusters than different features


def test_projection_keeps_neighbours_and_repeats():
    kinds, features = blobs()
    places, perplexity = space.project(features)
    assert perplexity == pytest.approx(29 / 3)  # 30 points have no 30 neighbours
    assert space.agreement(places, kinds, np.arange(30)).share == 1
    again, _ = space.project(features)
    np.testing.assert_array_equal(places, again)
    assert space.project(features, perplexity=4)[1] == 4
    assert space.silhouette(features, kinds) > 0.9 and np.isnan(space.silhouette(features, kinds * 0))


def test_spread_is_bilinear_between_centres():
    values = np.random.default_rng(0).normal(size=(2, 3, 1)).astype(np.float32)
    found = pictures.spread(values, (12, 5))
    np.testing.assert_allclose(found, jax.image.resize(values, (2, 12, 5), "linear"), atol=1e-6)


def test_heat_colours_by_sign_and_outlines_the_truth():
    frame, values, mask = np.full((6, 6, 3), 90, np.uint8), np.zeros((6, 6)), np.zeros((6, 6), int)
    values[0, 0], values[5, 5], mask[2:4, 2:4] = 1, -1, 1
    found = pictures.heat(frame, values, mask)
    assert found[0, 0, 0] > 200 > found[0, 0, 2] and found[5, 5, 2] > 200 > found[5, 5, 0]
    assert (found[2:4, 2:4] == 255).all() and (found[0, 1:] == 54).all()


# ------------------------------------------------------------------------------------------------ choices


def test_choose_clips():
    source = ToySource(clips=10)
    assert choose_clips(source, 4) == [1, 3, 6, 8]
    assert choose_clips(source, 0) == choose_clips(source, 99) == list(range(10))
    assert choose_clips(source, 4, ["toy-07", "toy-02", "toy-07"]) == [7, 2]
    with pytest.raises(InputError, match=r"--ids.*Did you mean 'toy-07'"):
        choose_clips(source, 4, ["toy-7"])
    with pytest.raises(InputError, match="--clips"):
        choose_clips(source, -1)


def test_pick_stages():
    available = {"stage1": 0, "stage4": 0, "queries": 0}
    assert pick_stages(available, ["4", "queries"]) == ["stage4", "queries"]
    assert pick_stages(available, []) == list(available)
    with pytest.raises(InputError, match=r"--stage.*'5'"):
        pick_stages(available, ["5"])


class Sounding(ToySource):
    sound_names = ("bell", "drum")

    def sounds(self, index):
        return np.array([[index < 3, False]] * 4 + [[False, True]])


def test_names_of_clusters():
    source = Sounding(clips=4)
    found = {(clip, t): int(t == 4) for clip in range(4) for t in range(5)}
    assert clusters.cluster_names(source, found, "frame") == ["1: bell 75%, 16 frames", "2: drum 100%, 4 frames"]
    whole = {(clip, 0): int(clip == 3) for clip in range(4)}
    assert clusters.cluster_names(source, whole, "clip") == ["1: bell 100%, 3 clips", "2: silence 100%, 1 clip"]
    assert clusters.cluster_names(ToySource(clips=4), whole, "clip") == ["1: 3 clips", "2: 1 clip"]


@pytest.mark.parametrize(
    "source, expected", [(Sounding(), 2), (ToySource(), 7), (ToySource(classes=4), 3), (ToySource(classes=71), 20)]
)
def test_number_of_clusters(source, expected):
    heard = {(clip, t): np.random.default_rng([clip, t]).normal(size=3) for clip in range(8) for t in range(5)}
    assert len(set(clusters.cluster_sounds(heard, source, 0, 0).values())) == expected
    assert len(set(clusters.cluster_sounds(heard, source, 5, 0).values())) == 5
    few = dict(list(heard.items())[:4])
    assert len(set(clusters.cluster_sounds(few, source, 0, 0).values())) == 2  # not one cluster for each sound


# ------------------------------------------------------------------------------------------------ commands


def test_attention_command(runs, capsys):
    assert explain.main(["attention", f"--workdir={runs['va']}", "--clips=2"]) == 0
    folder = runs["va"] / "pictures"
    written = json.loads((folder / "attention_test.json").read_text())
    assert str(folder / "attention_test.png") in capsys.readouterr().out
    assert [row["id"] for row in written["clips"]] == ["multi-test-00001", "multi-test-00004"]
    method, variables = load_checkpoint(runs["va"])
    clip = build.build_source(recipe(), "test")[4]
    maps = method.attention(variables, {k: clip[k][None] for k in ("frames", "audio")})
    assert list(written["clips"][1]["stages"]) == list(maps) == ["stage1", "stage2", "stage3", "stage4"]
    for name, values in maps.items():
        values, row = np.asarray(values)[0].sum(-1), written["clips"][1]["stages"][name]
        assert row["bound"] == pytest.approx(np.percentile(np.abs(values), 99), rel=1e-5)
        smooth = np.asarray(jax.image.resize(values, clip["labels"].shape, "linear"))
        assert row["auc"] == pytest.approx(space.ranking(smooth, clip["labels"] == 1), abs=0.01)
        assert written["auc"][name] == pytest.approx(np.mean([r["stages"][name]["auc"] for r in written["clips"]]))


def test_attention_picture_repeats_and_follows_its_options(runs, tmp_path):
    paths = [tmp_path / f"{name}.png" for name in ("a", "b", "c")]
    for path, more in zip(paths, ([], [], ["--stage=2"]), strict=True):
        command = ["attention", f"--workdir={runs['va']}", "--ids=multi-test-00002", f"--output={path}", *more]
        assert explain.main(command) == 0
    first, second, less = map(pixels, paths)
    np.testing.assert_array_equal(first, second)
    assert paths[0].with_suffix(".json").read_text() == paths[1].with_suffix(".json").read_text()
    assert less.shape[1] == first.shape[1] and less.shape[0] < first.shape[0] - 200  # a stage in place of four
    assert list(json.loads(paths[2].with_suffix(".json").read_text())["auc"]) == ["stage2"]


def test_tsne_command_compares_runs(runs, tmp_path, capsys):
    paths = [tmp_path / "a" / "x.png", tmp_path / "b.png"]
    for path in paths:
        command = ["tsne", f"--workdir={runs['none']}", f"--workdir={runs['va']}", "--mask=true", "--stage=1"]
        assert explain.main([*command, "--clusters=3", f"--output={path}"]) == 0
    np.testing.assert_array_equal(*map(pixels, paths))
    assert paths[0].with_suffix(".json").read_text() == paths[1].with_suffix(".json").read_text()
    written = json.loads(paths[0].with_suffix(".json").read_text())
    assert written["clustered"] == str(runs["va"])  # the one that hears
    assert len(written["clusters"]) == 3
    source = build.build_source(recipe(), "test")
    sounding = [(i, t) for i in range(6) for t in range(5) if (source[i]["labels"][t] == 1).any()]
    none, va = written["runs"]
    assert [(row[0], row[1]) for row in va["coordinates"]] == [(source.ids[i], t) for i, t in sounding]
    assert [row[:3] for row in none["coordinates"]] == [row[:3] for row in va["coordinates"]]  # one clustering
    assert va["points"] + va["left_out"] == 30 and va["points"] == len(sounding)
    assert 0 <= va["alike"] <= 1 and va["interval"][0] <= va["alike"] <= va["interval"][1]
    assert none["chance"] == va["chance"] and none["silhouette"] != va["silhouette"]
    assert f"{va['alike']:.3f}" in capsys.readouterr().out


def test_tsne_of_clips_under_predicted_masks(runs, tmp_path):
    path = tmp_path / "x.png"
    result = explain.tsne([runs["va"]], point="clip", stage="2", audio="stage2", output=path, data={"length": 7})
    (row,) = result["runs"]
    assert row["points"] + row["left_out"] == 7 and {frame for _, frame, *_ in row["coordinates"]} == {0}
    assert sum(int(name.split()[-2]) for name in result["clusters"]) == 7
    assert pixels(path).std() > 5


BAD = [
    ("attention --workdir={none}", "attention maps: expected .*with fusion='none'"),
    ("attention --workdir={vv}", "attention maps: expected .*with fusion='vv'"),
    ("attention --workdir={va}/nowhere", "config.json"),
    ("attention --workdir={va} --clips=-1", "--clips"),
    ("attention --workdir={va} --ids=multi-test-0001", "Did you mean 'multi-test-0"),
    ("attention --workdir={va} --stage=1,5", "--stage.*'5'"),
    ("attention --workdir={va} --output=x.jpg", "ends in .png"),
    ("attention --workdir={va} --data.lenght=3", "Did you mean 'length'"),
    ("attention --workdir={va} --clip=3", "Did you mean '--clips'"),
    ("attention --workdir={va} --mask=true", "an argument of explain attention"),
    ("attention", "--workdir"),
    ("tsne --workdir={none} --mask=true --stage=1", "expected a run that hears"),
    ("tsne --workdir={va} --stage=7", "--stage.*'7'"),
    ("tsne --workdir={va} --audio=embeding --mask=true", "Did you mean 'embedding'"),
    ("tsne --workdir={va} --clips=1 --point=clip --mask=true", "at least 5; found [01] of 1"),
    ("tsne --workdir={va} --mask=truth", "invalid choice: 'truth'"),
    ("tsne --workdir={va} --perplexity=0", "--perplexity"),
    ("tsne --workdir={va} --workdir={other}", "a run on the same clips"),
    ("tsen", "invalid choice: 'tsen'"),
    ("", "required"),
]


@pytest.mark.parametrize("command, message", BAD, ids=[command or "nothing" for command, _ in BAD])
def test_bad_input_is_one_line(runs, tmp_path, capsys, command, message):
    if "{other}" in command:
        (tmp_path / "checkpoints").symlink_to(runs["va"] / "checkpoints")
        config = configs.load(runs["va"] / "config.json")
        config.data.test.length = 5
        configs.save(config, tmp_path / "config.json")
    assert explain.main(command.format(**runs, other=tmp_path).split()) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    assert re.search(message, error), error


class Padded(ToySource):
    """The last frame of every clip only fills it up."""

    def __getitem__(self, index):
        clip = super().__getitem__(index)
        clip["present"], clip["labels"][4] = np.arange(5) < 4, 1
        return clip


def showing(batch):
    """A toy's features are the colours, and its attention is what it goes by."""
    frames, sound = jnp.asarray(batch["frames"]) / 255.0, jnp.asarray(batch["audio"])
    return {"visual": {"colours": frames}, "audio": {"loudness": sound}}, {"redness": frames[..., :1] - 0.5}


def test_any_method_and_frames_that_are_not_there(tmp_path, monkeypatch):
    toy = dataclasses.replace(toy_method(), features=lambda variables, batch: showing(batch)[0],
                              attention=lambda variables, batch: showing(batch)[1])  # fmt: skip
    source = Padded(clips=5)
    configs.save(configs.defaults(), tmp_path / "config.json")
    monkeypatch.setattr("avs_jax.training.build.create_source", lambda name, **_: source)
    monkeypatch.setattr("avs_jax.training.checkpoint.load_checkpoint", lambda workdir, which: (toy, VARIABLES))
    found = explain.attention(tmp_path, clips=1)
    clip = source[2]
    known = clip["labels"][:4] != 255
    expected = space.ranking(clip["frames"][:4, ..., 0][known] / 255.0, clip["labels"][:4][known] == 1)
    assert found["auc"]["redness"] == pytest.approx(expected)
    run = open_run(tmp_path, "best", "test")
    choice = {"stage": "colours", "mask": "true", "audio": "loudness"}
    points = masked_features(run, [3, 1, 0], point="frame", **choice)
    assert points.frame.max() == 3 and len(points.heard) == 12  # 4 frames of 3 clips are there
    for clip, t, colour in zip(points.clip, points.frame, points.features, strict=True):
        record = source[clip]
        np.testing.assert_allclose(colour, record["frames"][t][record["labels"][t] == 1].mean(0) / 255, rtol=1e-4)
        np.testing.assert_allclose(points.heard[clip, t], source.audio(clip)[t])
    whole = masked_features(run, range(5), point="clip", **choice)
    own = points.features[points.clip == 1]
    np.testing.assert_allclose(whole.features[1], own.mean(0), rtol=1e-5)
    np.testing.assert_allclose(whole.heard[1, 0], source.audio(1)[:4].mean(0), rtol=1e-6)


def test_method_that_shows_nothing(tmp_path, monkeypatch):
    configs.save(configs.defaults(), tmp_path / "config.json")
    monkeypatch.setattr("avs_jax.training.build.create_source", lambda name, **_: ToySource())
    monkeypatch.setattr("avs_jax.training.checkpoint.load_checkpoint", lambda workdir, which: (toy_method(), VARIABLES))
    with pytest.raises(InputError, match=r"attention maps.*none in 'toy'"):
        explain.attention(tmp_path)
    with pytest.raises(InputError, match=r"features.*none in 'toy'"):
        explain.tsne([tmp_path])


def test_a_gate_is_drawn_between_its_own_bounds(tmp_path):
    gate = drawing.Attended(np.linspace(0.5, 0.6, 400).reshape(1, 20, 20), 0.7)
    assert gate.low == pytest.approx(0.501, abs=1e-3) and gate.bound == pytest.approx(0.599, abs=1e-3)
    assert gate.strength()[0, 0, 0] < 0.01 and gate.strength()[0, -1, -1] > 0.99
    signed = drawing.Attended(gate.values - 0.55, 0.7)
    assert signed.low is None and signed.strength()[0, 0, 0] == pytest.approx(-1, abs=0.05)
    frames, truth = np.zeros((1, 16, 16, 3), np.uint8), np.zeros((1, 16, 16), np.uint8)
    view = pictures.View("a", frames, truth, [pictures.Heard("own sound", truth)])
    assert drawing._attention_row(view, "gate", gate).label == "gate\n0.5 to 0.6"
    assert drawing._attention_row(view, "stage4", signed).label.startswith("stage 4\n±")
    assert pixels(drawing.attention_picture(tmp_path / "x.png", [view], [{"gate": gate}])).std() > 5


def test_predicted_masks_end_where_the_picture_does():
    batch = {"size": np.array([[3, 5], [4, 2]], np.int32)}
    found = np.broadcast_to(features._pictures(batch, (2, 1, 4, 6)), (2, 1, 4, 6))
    assert found.sum() == 15 + 8 and found[0, 0, 2, 4] and found[1, 0, 3, 1] and not found[1, 0, 0, 2]
    assert features._pictures({}, (2, 1, 4, 6)) is True


def test_attention_must_fit_its_clip(tmp_path):
    frames = np.zeros((5, 16, 16, 3), np.uint8)
    truth = np.zeros((5, 16, 16), np.uint8)
    view = pictures.View("a", frames, truth, [pictures.Heard("own sound", truth)])
    with pytest.raises(InputError, match=r"stage1.*'a'"):
        drawing.attention_picture(tmp_path / "x.png", [view], [{"stage1": drawing.Attended(np.zeros((4, 2, 2)), 0.5)}])
    with pytest.raises(InputError, match="at most 60"):
        drawing.attention_picture(tmp_path / "x.png", [view] * 61, [{}] * 61)
    flat = {"stage1": drawing.Attended(np.zeros((5, 2, 2)), float("nan"))}  # nothing to divide by, nothing to tell
    assert pixels(drawing.attention_picture(tmp_path / "x.png", [view], [flat])).shape[2] == 3
