"""TransAVS as a method: options, views, what counts in the loss, training, weights there and back."""

import dataclasses
import importlib.util
import inspect
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from transavs_small import SMALL, assert_same_gradients, confident, losses_of, make_batch

import avs_jax
from avs_jax.errors import InputError
from avs_jax.losses.query_set import QueryLoss
from avs_jax.methods import transavs
from avs_jax.models.encoders import create_encoder
from avs_jax.models.initialise import initialise
from avs_jax.train import train
from avs_jax.training import build

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def small():
    method = avs_jax.create("transavs", **SMALL)
    return method, confident(method.init(jax.random.key(0), make_batch()))


@pytest.fixture(scope="module")
def small_loss(small):
    return losses_of(small[0])


# ---- The method


def test_options_of_the_objective_are_its_own():
    mine = {k: p.default for k, p in inspect.signature(transavs.create).parameters.items()}
    for field in dataclasses.fields(QueryLoss):
        assert mine[field.name] == field.default, field.name


def test_prediction(small):
    method, variables = small
    batch = make_batch()
    prediction = method.predict(variables, batch)
    scores = np.asarray(prediction.scores)
    assert prediction.logits is None and scores.shape == (2, 3, 32, 32, 1) and prediction.labels.shape == (2, 3, 32, 32)
    assert scores.min() >= 0 and scores.max() <= 1 and scores.std() > 0.01
    np.testing.assert_array_equal(prediction.labels, scores[..., 0] > 0.5)
    assert 0 < np.mean(prediction.labels) < 1
    order = np.array([2, 0, 1])
    frames = method.predict(variables, {k: v[:, order] if v.ndim > 1 else v for k, v in batch.items()})
    np.testing.assert_allclose(frames.scores, scores[:, order], atol=1e-5)
    clips = method.predict(variables, {k: v[::-1] for k, v in batch.items()})
    np.testing.assert_allclose(clips.scores, scores[::-1], atol=1e-5)
    other = method.predict(variables, {**batch, "audio_embedding": batch["audio_embedding"][::-1]})
    assert np.abs(other.scores - scores).max() > 1e-3
    batch["present"][1, 2] = False
    short = method.predict(variables, batch)
    assert not np.any(short.scores[1, 2]) and not np.any(short.labels[1, 2])
    np.testing.assert_allclose(short.scores[0], scores[0], atol=1e-5)


def test_views(small):
    method, variables = small
    batch = make_batch()
    found = method.instances(variables, batch, count=3)
    assert found.masks.shape == (2, 3, 3, 32, 32) and found.kept.any()
    best = (found.probabilities[..., None, None] * found.masks).max(2)
    scores = np.asarray(method.predict(variables, batch).scores)[..., 0]
    assert (best <= scores + 1e-5).all()
    attention = method.attention(variables, batch)
    assert {k: v.shape for k, v in attention.items()} == {"stage3": (2, 3, 2, 2, 1), "stage4": (2, 3, 1, 1, 1)}
    for looked in attention.values():
        np.testing.assert_allclose(looked.sum((2, 3, 4)), 1, atol=1e-5)
    features = method.features(variables, batch)
    assert [v.shape for v in features["visual"].values()] == [(2, 3, s, s, 16) for s in (8, 4, 2, 1)]
    np.testing.assert_array_equal(features["audio"]["embedding"], batch["audio_embedding"])


def test_loss_and_gradients(small, small_loss):
    method, variables = small
    batch = make_batch()
    (value, (state, metrics)), grads = small_loss(variables, batch)
    main = 5 * (metrics["focal"] + metrics["dice"] + metrics["aux_focal"] + metrics["aux_dice"])
    np.testing.assert_allclose(value, main + 2 * (metrics["aqdl"] + metrics["aqml"]), rtol=1e-5)
    assert metrics["n1"] > 1 and metrics["aqdl"] > 0 and metrics["aqml"] > 0
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(grads))
    labels = method.param_groups(variables["params"])
    moved = jax.tree.map(lambda g, label: (label, bool(np.any(g))), grads, labels)
    for path, (label, any_) in jax.tree_util.tree_flatten_with_path(moved, is_leaf=lambda x: isinstance(x, tuple))[0]:
        # the first level has one pixel here: nothing to choose from, and a softmax does not see biases of keys
        blind = any(getattr(p, "key", "") in ("q", "k") for p in path)
        assert any_ == (label != "frozen") or blind, (jax.tree_util.keystr(path), label, any_)
    jax.tree.map(np.testing.assert_array_equal, state, {k: v for k, v in variables.items() if k != "params"})
    later = small_loss(variables, batch, step=100)[0][1][1]
    assert metrics["delta1"] == pytest.approx(0.55) and later["delta2"] == pytest.approx(0.65)


def test_parameter_groups(small):
    method, variables = small
    flat = jax.tree_util.tree_flatten_with_path(method.param_groups(variables["params"]))[0]
    found = {".".join(k.key for k in path): label for path, label in flat}
    assert {found[k] for k in found if k.startswith("audio.")} == {"frozen"}
    assert found["encoder.conv1.kernel"] == "encoder" and found["encoder.bn1.scale"] == "frozen"
    assert found["transformer.decoder0.ffn.linear1.bias"] == "head"
    for name in ("transformer.query_positions", "transformer.level_embedding", "transformer.norm.bias",
                 "pixel_decoder.stride8.output.norm.scale"):  # fmt: skip
        assert found[name] == "head/no_decay", name
    free = avs_jax.create("transavs", **{**SMALL, "backbone": "swin_t", "width": 32, "depths": (1, 1, 1, 1)},
                          train_audio=True)  # fmt: skip
    shapes = jax.eval_shape(free.init, jax.random.key(0))
    labels = free.param_groups(shapes["params"])
    assert labels["encoder"]["block1_0"]["attn"]["bias_table"] == "encoder/no_decay"
    assert labels["encoder"]["block1_0"]["norm1"]["bias"] == "encoder/no_decay"
    assert labels["encoder"]["block1_0"]["mlp"]["fc1"]["bias"] == "encoder"
    assert labels["audio"]["conv0"]["kernel"] == "audio"
    still = avs_jax.create("transavs", **SMALL, freeze_encoder=True)
    assert set(jax.tree.leaves(still.param_groups(variables["params"])["encoder"])) == {"frozen"}


def test_what_does_not_count_changes_nothing(small, small_loss):
    """Clips that fill up a batch, frames without labels, and frames that are not there."""
    _, variables = small
    batch = make_batch()
    batch["valid"][1] = batch["labelled"][0, 1] = False
    batch["present"][0, 2] = False
    (value, _), grads = small_loss(variables, batch)
    other = {k: v.copy() for k, v in batch.items()}
    fresh = make_batch(seed=9)
    for key in ("frames", "audio_embedding"):
        other[key][1], other[key][0, 1:] = fresh[key][1], fresh[key][0, 1:]
    other["labels"][1], other["labels"][0, 1:] = 1, 1
    (changed, _), others = small_loss(variables, other)
    np.testing.assert_allclose(changed, value, rtol=1e-6)
    assert_same_gradients(others, grads)
    other["labels"][0, 0] = 1
    assert abs(small_loss(variables, other)[0][0] - value) > 1e-3


def test_the_control_without_sound():
    method = avs_jax.create("transavs", **{**SMALL, "encoder_layers": 0, "decoder_layers": 1}, query_init="learned")
    variables = confident(method.init(jax.random.key(0), make_batch()))
    assert "audio" not in variables["params"] and method.embed_audio is None
    assert set(avs_jax.to_torch(method, variables)) >= {"queries.embedding", "encoder.conv1.weight"}
    batch, deaf = make_batch(), make_batch()
    del deaf["audio_embedding"]
    state = {k: v for k, v in variables.items() if k != "params"}
    value, (_, metrics) = jax.jit(method.loss)(variables["params"], state, deaf, jax.random.key(0), 0)
    assert np.isfinite(value) and metrics["dice"] > 0
    assert method.param_groups(variables["params"])["queries"]["embedding"] == "head/no_decay"
    scores = method.predict(variables, deaf).scores
    assert np.std(scores) > 0.01
    batch["audio_embedding"] += 1
    np.testing.assert_array_equal(method.predict(variables, batch).scores, scores)
    assert method.attention(variables, deaf) == {} and method.features(variables, deaf)["audio"] == {}


# ---- Options in company: each compiles a loss, so they come together

TOGETHER = {
    "semantic": dict(setting="vpo_ms", num_classes=5, max_targets=2, pixel_decoder="none", pixel_options=None,
                     query_init="shared", masked_attention=True, mask_mlp=True, aqdl_on="decoder", remat=True,
                     lambda_mask=1.0, inference_rule="semantic", aqdl_form="exp", dropout=0.1),
    "letter": dict(setting="s4", query_init="clip", num_frames=3, literal_attention=True, round_robin="paper",
                   aux_loss=False, frozen_norm=False, attention="dot_product", train_audio=True, dice="squared",
                   compare_at="mask", delta1=(0.6, 0.6)),
    "swin": dict(setting="avss", num_classes=4, max_targets=3, backbone="swin_t", width=32, depths=(1, 1, 1, 1),
                 pixel_decoder="msdeform", pixel_options={"layers": 1, "heads": 4, "hidden": 8, "groups": 4},
                 remat=True, decoder_self_attention=False, freeze_encoder=True, compute_dtype="bfloat16"),
}  # fmt: skip


@pytest.mark.parametrize("name", ["semantic", "letter", pytest.param("swin", marks=pytest.mark.slow)])
def test_options_together(name):
    options = {**SMALL, "decoder_layers": 1, **TOGETHER[name]}
    method = avs_jax.create("transavs", **options)
    assert json.loads(json.dumps(method.options)) == method.options
    classes = options.get("num_classes", 2)
    batch = make_batch(1 if name == "semantic" else 2, 1 if name == "semantic" else 3, (48, 40), classes=classes)
    if name == "letter":
        del batch["audio_embedding"]
        batch["audio"] = np.random.default_rng(0).normal(size=(2, 3, 96, 64)).astype(np.float32)
        batch["labelled"][:, 1:] = False
    variables = confident(method.init(jax.random.key(0), batch))
    loss = losses_of(method)
    (value, (state, metrics)), grads = loss(variables, batch)
    assert np.isfinite(value) and all(np.isfinite(g).all() for g in jax.tree.leaves(grads))
    assert any(np.any(g) for g in jax.tree.leaves(grads["encoder"])) == (name != "swin")
    assert any(np.any(g) for g in jax.tree.leaves(grads["audio"])) == (name == "letter")
    assert ("aux_dice" in metrics) == (name != "letter") and ("mask" in metrics) == (name == "semantic")
    assert jax.tree.structure(state) == jax.tree.structure({k: v for k, v in variables.items() if k != "params"})
    again = loss(variables, batch)[0][0]
    assert again == value and (loss(variables, batch, seed=1)[0][0] != value) == (name in ("semantic",))
    prediction = method.predict(variables, batch)
    b, t = batch["labelled"].shape
    assert prediction.scores.shape == (b, t, 48, 40, 1 if classes == 2 else classes)
    assert np.asarray(prediction.labels).max() < max(classes, 2) and np.any(prediction.labels)
    if classes > 2:
        np.testing.assert_array_equal(prediction.labels, np.argmax(prediction.scores, -1))
    if name == "letter":  # S4: the other frames are not even looked at
        other = {**batch, "frames": batch["frames"].copy(), "labels": batch["labels"].copy()}
        other["frames"][:, 1:], other["labels"][:, 1:] = 0, 1
        assert loss(variables, other)[0][0] == value
        sounds = {**batch, "audio": batch["audio"].copy()}
        sounds["audio"][:, 1:] = 0  # but all sounds are heard, which the queries mix
        assert loss(variables, sounds)[0][0] != value


# ---- Weights


def test_weights_there_and_back(small):
    method, variables = small
    state_dict = avs_jax.to_torch(method, variables)
    assert state_dict["transformer.decoder0.cross_attention.q.weight"].shape == (16, 16)
    assert state_dict["queries.linear.weight"].shape == (128, 128)
    assert {"encoder.conv1.weight", "features.0.weight", "transformer.query_positions"} <= set(state_dict)
    again = avs_jax.load_torch(method, state_dict)
    jax.tree.map(np.testing.assert_array_equal, again["params"], jax.tree.map(np.asarray, variables["params"]))
    assert method.torch_keys.rules == tuple(dict.fromkeys(method.torch_keys.rules))
    shapes = jax.eval_shape(method.init, jax.random.key(0))
    paths = {tuple(k.key for k in path) for path, _ in jax.tree_util.tree_flatten_with_path(shapes["params"])[0]}
    assert paths == {rule.path for rule in method.torch_keys.rules if rule.collection == "params"}


@pytest.mark.parametrize("options", [
    {"query_init": "learned", "train_audio": True},
    {"backbone": "swin_t", "width": 32, "depths": (1, 1, 1, 1), "query_init": "shared"},
    {"backbone": "pvt_v2_b0", "width": 8, "query_init": "clip", "num_frames": 3, "pixel_decoder": "none",
     "pixel_options": {}, "literal_attention": True},
], ids=["learned", "swin", "pvt"])  # fmt: skip
def test_weights_of_other_networks_there_and_back(options):
    method, r = avs_jax.create("transavs", **{**SMALL, **options}), np.random.default_rng(0)
    shapes = jax.eval_shape(method.init, jax.random.key(0))
    variables = jax.tree.map(lambda s: r.normal(size=s.shape).astype(s.dtype), shapes)
    state_dict = avs_jax.to_torch(method, variables)
    again = avs_jax.load_torch(method, state_dict)
    jax.tree.map(np.testing.assert_array_equal, {k: again[k] for k in variables}, variables)
    back = avs_jax.to_torch(method, again)
    assert list(back) == list(state_dict)
    for key, value in state_dict.items():
        np.testing.assert_array_equal(back[key], value)


@pytest.mark.parametrize("kind", ["timm", "official"])
def test_public_files_of_encoders(kind, tmp_path):
    from safetensors.numpy import save_file

    from avs_jax.config import defaults
    from avs_jax.weights.pretrained import load_pretrained

    sizes = {"width": 32, "depths": (1, 1, 1, 1)}
    method = avs_jax.create("transavs", **{**SMALL, "backbone": "swin_t", **sizes})
    variables = method.init(jax.random.key(1))
    swin = create_encoder("swin_tiny_patch4_window7_224", **sizes, keys=kind)
    vggish = create_encoder("vggish", width=2, hidden=8)
    section = defaults().pretrained
    made = {}
    for part, encoder in (("encoder", swin), ("audio", vggish)):
        made[part] = jax.tree.map(np.asarray, initialise(encoder, jax.random.key(2), encoder.example_input()))
        save_file(avs_jax.to_torch(encoder, made[part]), tmp_path / f"{part}.safetensors")
        section[part] = str(tmp_path / f"{part}.safetensors")
    loaded = load_pretrained(method, variables, section)
    for part in made:
        for path, value in jax.tree_util.tree_flatten_with_path(made[part]["params"])[0]:
            found = loaded["params"][part]
            for key in path:
                found = found[key.key]
            np.testing.assert_array_equal(found, value)
    head = ("pixel_decoder", "queries", "transformer")
    jax.tree.map(np.testing.assert_array_equal, *({k: v["params"][k] for k in head} for v in (loaded, variables)))


# ---- Recipe and training


def recipe(arg=None):
    spec = importlib.util.spec_from_file_location("recipe", ROOT / "configs" / "transavs.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(arg)


def test_recipe():
    c = recipe("setting=s4,backbone=swin_b,queries=100,delta2=fixed")
    assert (
        c.steps == 90_000 and c.batch_size == 8 and c.optimizer.clip_norm == 0.01 and c.optimizer.groups.encoder == 0.1
    )
    assert c.method.num_queries == 100 and c.method.delta2 == (0.6, 0.6) and "22k" in c.pretrained.encoder
    c.steps = 500
    assert c.to_dict()["method"]["max_iter"] == 500
    assert build.identity(c) == build.identity(recipe("setting=s4,backbone=swin_b,queries=100,delta2=fixed")), "longer"
    assert recipe("setting=vpo_ss").data.source == "vpo"
    assert (c.method.lambda_aqdl, recipe("aqdl=0").method.lambda_aqdl, recipe("aqml=0").method.lambda_aqml) == (2, 0, 0)
    tiny = [recipe(f"scale=tiny,queries={n}").method.num_queries for n in (100, 300, 500, 7)]
    assert tiny == [6, 20, 33, 7]
    control = recipe("query_init=learned,dataset=synthetic,scale=tiny")
    assert control.tagging.steps == 0 and control.method.query_init == "learned"
    assert recipe("query_init=learned").pretrained.audio == "" != recipe().pretrained.audio
    with pytest.raises(InputError, match="dataset"):
        recipe("setting=s4,dataset=vpo")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    c = recipe("dataset=synthetic,scale=tiny")
    c.method.update({**SMALL, "frozen_norm": False, "decoder_layers": 1})
    c.method.max_iter = 2
    c.data.image_size = 32
    c.data.train.length = c.data.eval.length = c.data.test.length = 2
    c.steps, c.batch_size, c.tagging.steps = 2, 2, 0
    c.optimizer.warmup_steps = 1
    c.checkpoint.update(every_steps=1, keep=2)
    c.log.every_steps = 1
    c.eval.max_clips = 2
    c.loader.embeddings = str(tmp_path_factory.mktemp("embeddings"))
    workdir = tmp_path_factory.mktemp("run")
    return c, workdir, train(c, workdir)


def test_training_logs_every_term(run):
    _, workdir, result = run
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    terms = {"focal", "dice", "aux_focal", "aux_dice", "aqdl", "aqml", "n1", "n2", "delta1", "delta2", "loss"}
    assert terms <= {key.split("/")[-1] for row in rows for key in row}
    assert int(result.state.step) == 2 and 0 <= result.figures["miou"] <= 1


def test_resumed_run_ends_as_the_whole_one(run, tmp_path):
    c, workdir, result = run
    shutil.copytree(workdir, tmp_path / "half")
    shutil.rmtree(tmp_path / "half" / "checkpoints" / "2")
    resumed = train(c, tmp_path / "half")
    assert int(resumed.state.step) == 2
    jax.tree.map(np.testing.assert_array_equal, resumed.state, result.state)
    metrics = [(folder / "metrics.jsonl").read_bytes() for folder in (workdir, tmp_path / "half")]
    assert metrics[0] == metrics[1]


def test_checkpoint_there_and_back(run):
    _, workdir, result = run
    method, variables = avs_jax.load_checkpoint(workdir, which="latest")
    assert method.name == "transavs"
    jax.tree.map(np.testing.assert_array_equal, variables["params"], result.state.variables["params"])
    batch = make_batch(t=5)
    np.testing.assert_array_equal(
        method.predict(variables, batch).scores, method.predict(result.state.variables, batch).scores
    )


# ---- Refusals


def test_pictures_on_canvases_are_refused_before_training(small):
    c = recipe("setting=vpo_ss,root=/data")
    build.evaluator(c, small[0])
    c.data.test.pad = "buckets"
    with pytest.raises(InputError, match=r"data\.test\.pad.*'transavs'.*data\.fit=crop"):
        build.evaluator(c, small[0])
    build.evaluator(c, avs_jax.create("cavp"))


@pytest.mark.parametrize("options, words", [
    ({"setting": "ms4"}, ["method.setting", "Did you mean 's4'"]),
    ({"backbone": "swin_xl"}, ["method.backbone", "swin_"]),
    ({"query_init": "second"}, ["method.query_init", "frame"]),
    ({"query_init": "clip", "setting": "vpo_ss"}, ["method.query_init", "one frame"]),
    ({"pixel_decoder": "fpm"}, ["method.pixel_decoder", "Did you mean 'fpn'"]),
    ({"pixel_options": {"layers": 2}}, ["pixel_decoder.layers"]),
    ({"dim": 6}, ["method.dim", "multiple of 4"]),
    ({"dim": 20}, ["method.heads", "divisor of the 20"]),
    ({"num_classes": 1}, ["method.num_classes", "at least 2"]),
    ({"num_queries": 0}, ["method.num_queries"]),
    ({"dropout": 1.0}, ["method.dropout", "[0, 1)"]),
    ({"drop_path": 1.0, "backbone": "swin_t"}, ["drop_path"]),
    ({"class_prior": 0}, ["method.class_prior"]),
    ({"delta1": (0.5, 1.5)}, ["delta1"]),
    ({"dice": "cubic"}, ["dice", "linear"]),
    ({"depths": (1, 1, 1, 1)}, ["method.depths", "Swin"]),
    ({"max_iter": 0}, ["method.max_iter"]),
    ({"querys": 3}, ["method.querys", "Did you mean"]),
])  # fmt: skip
def test_bad_options(options, words):
    with pytest.raises(InputError) as e:
        avs_jax.create("transavs", **options)
    assert all(word in str(e.value) for word in words), str(e.value)


@pytest.mark.parametrize("change, words", [
    (lambda b: b.pop("audio_embedding"), ["'audio'", "present"]),
    (lambda b: b.update(audio_embedding=b["audio_embedding"][:, :1]), ["'audio_embedding'", "(2, 3, 128)"]),
    (lambda b: b.update(frames=b["frames"][:, :, :16]), ["'frames'", "at least 32"]),
    (lambda b: b.update(present=np.ones((2, 2), bool)), ["'present'", "(2, 3)"]),
    (lambda b: b.update(size=np.full((2, 2), 20, np.int32)), ["'size'", "data.pad=0"]),
])  # fmt: skip
def test_bad_batches(small, change, words):
    batch = make_batch()
    change(batch)
    with pytest.raises(InputError) as e:
        small[0].predict(small[1], batch)
    assert all(word in str(e.value) for word in words), str(e.value)
