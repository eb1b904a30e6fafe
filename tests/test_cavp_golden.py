"""CAVP against the public code's numbers: fusion, whole networks, one training step, parameter groups."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from goldens import FOLDER, detweights, error, image, load, manifest, weights

import avs_jax
from avs_jax.losses.contrastive import pairing_loss
from avs_jax.losses.cross_entropy import masked_cross_entropy
from avs_jax.methods import cavp
from avs_jax.models.fusion.cross_attention import GATES, CrossAttention, torch_rules
from avs_jax.weights.convert import to_ours

LOGITS, LOGITS_OCR = 1e-4, 1e-3  # absolute: the logits' deviation is 0.42


def spectrograms(shape, seed):
    """A stand-in (N, time, mel) from the golden files' (N, 1, time, mel)."""
    return np.float32(0.2 * image(shape, seed) - 0.4)[:, 0]


def pictures(shape, seed):
    return image(shape, seed).transpose(0, 2, 3, 1)


@pytest.mark.parametrize("tokens, shape, seed", [("one", (2, 304, 1, 1), 152), ("six", (2, 304, 2, 3), 153)])
@pytest.mark.parametrize("gate", GATES)
def test_cross_attention(gate, tokens, shape, seed):
    g, shapes = load("cavp_cross_attention"), manifest("cavp_deeplab_r50")
    params = {}
    for rule in torch_rules(304):
        if rule.collection == "params":
            node = params
            for name in rule.path[:-1]:
                node = node.setdefault(name, {})
            key = f"cross_att.{rule.key}"
            node[rule.path[-1]] = to_ours(detweights.tensor(key, shapes[key]), rule.layout)
    audio = image(shape, seed).reshape(2, 304, -1).transpose(0, 2, 1)
    fused, gates = CrossAttention(gate=gate).apply({"params": params}, pictures((2, 304, 6, 10), 151), audio)
    assert error(np.reshape(fused, (2, 60, 304)), g[f"{gate}_{tokens}/visual"]) < 1e-5
    gates = np.moveaxis(np.reshape(gates, (2, 60, 4, -1)), 2, 1)
    assert error(gates, g[f"{gate}_{tokens}/attn"]) < 1e-5


CASES = {  # file: (options, {case: image shape, seed, spectrogram shape, seed}, tolerance)
    "cavp_deeplab_r50": ({"setting": "vpo_ss"}, {
        "a": ((1, 3, 128, 128), 101, (1, 1, 300, 64), 201),
        "b": ((2, 3, 96, 160), 102, (2, 1, 300, 64), 202),
    }, LOGITS),
    "cavp_deeplab_r50_vgg_os16": ({"setting": "single_plus"}, {
        "a": ((2, 3, 64, 96), 111, (2, 1, 96, 64), 211)}, LOGITS),
    "cavp_deeplab_r101": ({"backbone": "resnet101"}, {"a": ((1, 3, 64, 64), 121, (1, 1, 300, 64), 221)}, LOGITS),
    "cavp_hrnet": ({"architecture": "hrnet"}, {"a": ((2, 3, 64, 96), 131, (2, 1, 300, 64), 231)}, LOGITS),
    "cavp_ocr": ({"architecture": "ocr"}, {"a": ((2, 3, 64, 96), 141, (2, 1, 300, 64), 241)}, LOGITS_OCR),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_network(name):
    options, cases, tolerance = CASES[name]
    g = load(name)
    method = avs_jax.create("cavp", **options)
    assert [rule.key for rule in method.torch_keys.rules] == list(manifest(name))
    variables = avs_jax.load_torch(method, weights(name))
    network = cavp.build_network(method.options)
    used = {k: variables[k] for k in ("params", "batch_stats")}
    run = jax.jit(lambda x, a: network.apply(used, x, a))
    for case, (shape, seed, sound, sound_seed) in cases.items():
        output = run(pictures(shape, seed), spectrograms(sound, sound_seed))
        logits = np.asarray(output.logits, np.float64).transpose(0, 3, 1, 2)
        want = {k.removeprefix(f"{case}/"): x for k, x in g.items() if k.startswith(f"{case}/")}
        assert np.abs(logits[:, :, ::4, ::4] - want["logits"]).max() < tolerance
        assert np.abs(logits.mean((2, 3)) - want["logits_mean"]).max() < tolerance
        assert np.abs(logits.std((2, 3)) - want["logits_std"]).max() < tolerance
        assert (logits.argmax(1) == want["argmax"]).mean() > 0.999
        fused = np.asarray(output.fused).transpose(0, 3, 1, 2)
        channels = fused.shape[1] // want["fused"].shape[1]
        assert error(fused[:, ::channels, ::2, ::2], want["fused"]) < 1e-4
        gate = np.asarray(output.gate)[..., 0].transpose(0, 3, 1, 2).reshape(*fused.shape[:1], 4, -1)
        assert error(gate[:, :, ::7], want["attn"]) < 1e-4


@pytest.mark.slow
def test_training_step():
    """Both losses on the public code's samples, logits of the true half, gradient norms, running statistics."""
    g = load("cavp_train_step")
    method = avs_jax.create("cavp", setting="vpo_ss")
    variables = avs_jax.load_torch(method, weights("cavp_deeplab_r50"))
    network = cavp.build_network(method.options)
    images, sounds = pictures((2, 3, 64, 64), 104), spectrograms((4, 1, 300, 64), 204)
    labels = g["gt"]
    match = np.zeros((2, 22), bool)
    match[[i for i in range(2) if np.array_equal(labels[i], g["gt_shuffle"][i])]] = True
    assert match.any(1).tolist() == [False, True]

    def loss(params):
        given = {"params": params, "batch_stats": variables["batch_stats"]}
        output, updated = network.apply(given, images, sounds, True, mutable=["batch_stats"])
        ce = masked_cross_entropy(output.logits, labels, labels != 255)
        pairing, _ = pairing_loss(output.fused, jnp.asarray(labels), match, max_views=24)
        return ce + pairing, (ce, pairing, output, updated)

    grad = jax.jit(jax.value_and_grad(loss, has_aux=True))
    (_, (ce, pairing, output, updated)), grads = grad(variables["params"])
    assert abs(ce / g["l_ce"] - 1) < 1e-3 and abs(pairing / g["l_ctr"] - 1) < 1e-3
    logits, fused = (np.asarray(x).transpose(0, 3, 1, 2) for x in output[:2])
    assert np.abs(logits[:, :, ::4, ::4] - g["logits"][:2]).max() < 5e-3
    assert np.abs(fused[:, ::8, ::2, ::2] - g["fused"]).max() < 5e-3
    named = avs_jax.to_torch(method, {"params": grads, **updated})
    norms = {k: np.linalg.norm(x.astype(np.float64)) for k, x in named.items()}
    off = [abs(norms[k] / want - 1) for k, want in zip(g["param_names"], g["grad_norm"], strict=True) if want > 0]
    assert max(off) < 0.03 and np.median(off) < 0.01
    for key in (k for k in g if k.startswith("running_")):
        kind, name = key.split("/")
        assert error(named[f"{name}.{kind}"][:64], g[key]) < 1e-3, key


@pytest.mark.parametrize("name, options", [
    ("deeplab_r50", {"setting": "vpo_ss"}),
    ("hrnet", {"architecture": "hrnet"}),
])  # fmt: skip
def test_parameter_groups_are_the_public_codes(name, options):
    """Tensors and elements with and without decay in each part; position embeddings, which never move, left out."""
    public = json.loads((FOLDER / "cavp_optimizer_groups.json").read_text())[name]
    method = avs_jax.create("cavp", **options)
    params = jax.eval_shape(method.init, jax.random.key(0))["params"]
    found = {}
    for leaf, label in zip(jax.tree.leaves(params), jax.tree.leaves(method.param_groups(params)), strict=True):
        count, size = found.get(label, (0, 0))
        found[label] = (count + 1, size + leaf.size)
    want = {"audio": (public["adam"]["tensors"], public["adam"]["elements"])}
    for group in public["sgd"]:
        part = group["first"].split(".")[0]
        label = {"backbone": "encoder", "segment": "segment"}.get(part, "fusion")
        label += "" if group["weight_decay"] == "default" else "/no_decay"
        count, size = want.get(label, (0, 0))
        want[label] = (count + group["tensors"], size + group["elements"])
    unused = [r for r in method.torch_keys.rules if "pos_embed" in r.key]
    count, size = want["fusion"]
    want["fusion"] = (count - len(unused), size - sum(int(np.prod(r.shape)) for r in unused))
    count, size = want["audio"]
    heads = [r for r in method.torch_keys.rules if "cls_head" in r.key]
    want["audio"] = (count - len(heads), size - sum(int(np.prod(r.shape)) for r in heads))
    assert found == want


@pytest.mark.slow
def test_parameter_counts():
    """The paper's table 3 gives 119.78 M for ResNet-50 with VGGish and 24 classes, what is never used included."""
    for options, million in (
        ({"setting": "single_plus"}, 119.775),
        ({"setting": "vpo_ss"}, 58.238),
        ({"backbone": "resnet101"}, 77.230),
        ({"architecture": "hrnet"}, 100.984),
        ({"architecture": "ocr"}, 98.289),
    ):
        method = avs_jax.create("cavp", **options)
        params = jax.eval_shape(method.init, jax.random.key(0))["params"]
        used = sum(x.size for x in jax.tree.leaves(params))
        idle = sum(int(np.prod(r.shape)) for r in method.torch_keys.rules if r.collection == "unused" and r.shape)
        assert abs((used + idle) / 1e6 - million) < 1e-3, options
