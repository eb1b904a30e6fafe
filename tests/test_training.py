"""The step, the optimisers, the loop and its checkpoints, in one process."""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import goldens
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from avsbench_tree import write_tree

import avs_jax
from avs_jax import config as configs
from avs_jax.data import pipeline
from avs_jax.errors import InputError, TrainingError
from avs_jax.methods import Method
from avs_jax.train import train
from avs_jax.training import build, optimizer
from avs_jax.training.checkpoint import Checkpoints
from avs_jax.training.clock import Clock
from avs_jax.training.logging import Log
from avs_jax.training.sharding import placed
from avs_jax.training.state import TrainState
from avs_jax.training.step import make_train_step

ROOT = Path(__file__).parent.parent
SMALL = ROOT / "tests" / "recipes" / "small.py"


def recipe(path=SMALL, arg=None, **changes):
    spec = importlib.util.spec_from_file_location("recipe", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    c = module.get_config(arg)
    c.update_from_flattened_dict({k.replace("__", "."): v for k, v in changes.items()})
    return c


# ---- Optimisers


def adam(p, m, v, g, t, lr, decay=0.0, decoupled=False):
    """One step of torch.optim.Adam or AdamW as their documentation's algorithms state them (t from 1)."""
    p = p * (1 - lr * decay) if decoupled else p
    g = g if decoupled else g + decay * p
    m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
    return p - lr * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8), m, v


def run_optimizer(name, grads, start, multiplier=1.0, **options):
    c = configs.defaults().optimizer
    c.update(name=name, lr=0.1, **options)
    c.groups["a"] = multiplier
    params = {"w": jnp.asarray(start)}
    tx = optimizer.make_optimizer(c, {"w": "a"}, total_steps=100)
    state = tx.init(params)
    for g in grads:
        updates, state = tx.update({"w": jnp.asarray(g)}, state, params)
        params = optax.apply_updates(params, updates)
    return np.asarray(params["w"])


@pytest.fixture
def gradients():
    rng = np.random.default_rng(0)
    return rng.standard_normal((5, 4)).astype(np.float32), rng.standard_normal(4).astype(np.float32)


@pytest.mark.parametrize("name", ["adam", "adamw"])
@pytest.mark.parametrize("decay, multiplier", [(0.0, 1.0), (0.3, 1.0), (0.3, 0.5)])
def test_adam_as_pytorch(gradients, name, decay, multiplier):
    grads, p = gradients
    found = run_optimizer(name, grads, p, multiplier, weight_decay=decay)
    m = v = np.zeros(4)
    for t, g in enumerate(grads, 1):
        p, m, v = adam(p, m, v, g, t, 0.1 * multiplier, decay, decoupled=name == "adamw")
    np.testing.assert_allclose(found, p, atol=1e-5)


def test_sgd_as_pytorch(gradients):
    grads, p = gradients
    found = run_optimizer("sgd", grads, p, momentum=0.9, weight_decay=0.2, clip_norm=1.5)
    buffer = np.zeros(4)
    for g in grads:
        g = g * min(1.0, 1.5 / np.linalg.norm(g))  # clip_grad_norm_, then the decay inside the optimiser
        buffer = 0.9 * buffer + g + 0.2 * p
        p = p - 0.1 * buffer
    np.testing.assert_allclose(found, p, atol=1e-5)


def test_clipping_is_over_all_groups():
    c = configs.defaults().optimizer
    c.update(name="sgd", lr=1.0, momentum=0.0, clip_norm=1.0)
    params = {"a": jnp.zeros(2), "b": jnp.zeros(2)}
    tx = optimizer.make_optimizer(c, {"a": "x", "b": "y"}, 10)
    updates, _ = tx.update({"a": jnp.full(2, 3.0), "b": jnp.full(2, 4.0)}, tx.init(params), params)
    np.testing.assert_allclose(optax.tree.norm(updates), 1.0, rtol=1e-6)
    np.testing.assert_allclose(updates["b"] / updates["a"], 4 / 3, rtol=1e-6)


def test_groups_scale_and_freeze():
    c = configs.defaults().optimizer
    c.update(name="sgd", lr=1.0, momentum=0.0, weight_decay=0.1)
    c.groups.update(slow=0.25, still=0.0)
    labels = {"a": "slow", "b": "still", "c": "other", "d": "frozen"}
    params = {k: jnp.ones(()) for k in labels}
    tx = optimizer.make_optimizer(c, labels, 10)
    updates, _ = tx.update(params, tx.init(params), params)
    assert {k: float(v) for k, v in updates.items()} == pytest.approx({"a": -0.275, "b": 0.0, "c": -1.1, "d": 0.0})
    assert optimizer.trainable(c, labels) == {"a": True, "b": False, "c": True, "d": False}


def test_groups_come_in_one_order_in_every_process():
    labels = {i: f"part{i}/no_decay" if i % 2 else f"part{i}" for i in (5, 3, 8, 1, 9, 2, 7, 4, 6, 0)}
    assert list(optimizer.group_options(configs.defaults().optimizer, labels)) == sorted(labels.values())


def test_groups_with_rules_of_their_own(gradients):
    """SGD with momentum for most, norms without decay, a part ten times as fast, and Adam at a constant rate."""
    grads, p = gradients
    c = configs.defaults().optimizer
    c.update(name="sgd", lr=0.1, momentum=0.9, weight_decay=0.2, schedule="poly")
    c.groups.update(segment=10.0, audio={"name": "adam", "schedule": "constant", "weight_decay": 0.0})
    c.groups["odd"] = {"scale": 2.0, "weight_decay": 0.5}
    c.groups["odd/no_decay"] = {"weight_decay": 0.05}
    labels = ["encoder", "encoder/no_decay", "segment", "segment/no_decay", "audio", "odd", "odd/no_decay"]
    labels = {label.replace("/", "_"): label for label in labels}
    params = {k: jnp.asarray(p) for k in labels}
    tx = optimizer.make_optimizer(c, labels, total_steps=10)
    state = tx.init(params)
    for g in grads:
        updates, state = tx.update({k: jnp.asarray(g) for k in labels}, state, params)
        params = optax.apply_updates(params, updates)

    def sgd(scale, decay):
        x, buffer = p, np.zeros(4)
        for t, g in enumerate(grads):
            buffer = 0.9 * buffer + g + decay * x
            x = x - 0.1 * scale * (1 - t / 10) ** 0.9 * buffer
        return x

    wanted = {"encoder": sgd(1, 0.2), "encoder_no_decay": sgd(1, 0), "segment": sgd(10, 0.2), "odd": sgd(2, 0.5),
              "segment_no_decay": sgd(10, 0), "odd_no_decay": sgd(2, 0.05)}  # fmt: skip
    x, m, v = p, np.zeros(4), np.zeros(4)
    for t, g in enumerate(grads, 1):
        x, m, v = adam(x, m, v, g, t, 0.1)
    for name, value in {**wanted, "audio": x}.items():
        np.testing.assert_allclose(params[name], value, rtol=1e-5, atol=1e-5, err_msg=name)
    assert all(jax.tree.leaves(optimizer.trainable(c, labels)))
    c.groups["segment"] = 0.0
    moving = optimizer.trainable(c, labels)
    assert not moving["segment"] and not moving["segment_no_decay"] and moving["encoder_no_decay"]


def test_golden_poly_schedule():
    golden = goldens.load("cavp_pairing")
    c = configs.defaults().optimizer
    c.update(lr=1e-3, schedule="poly", poly_power=0.9, floor=1e-8, lag=1)
    rate = optimizer.learning_rate(c, golden["lr/total"])
    for iteration, value in zip(golden["lr/iterations"], golden["lr/values"], strict=True):
        assert float(rate(iteration + 1)) == pytest.approx(value, rel=1e-6)  # it is set for the step after
    assert rate(0) == rate(1) == jnp.float32(1e-3)
    c.floor = 1e-5
    assert float(optimizer.learning_rate(c, golden["lr/total"])(golden["lr/total"])) == pytest.approx(1e-5)


@pytest.mark.parametrize(
    "options, expected",
    [
        (dict(schedule="constant"), {0: 1, 50: 1, 99: 1}),
        (dict(schedule="poly", poly_power=0.9), {0: 1, 50: 0.5**0.9, 99: 0.01**0.9, 100: 0}),
        (dict(schedule="cosine"), {0: 1, 50: 0.5, 100: 0}),
        (dict(schedule="cosine", final_scale=0.2), {0: 1, 50: 0.6, 100: 0.2}),
        (dict(schedule="constant", warmup_steps=4), {0: 0.25, 1: 0.5, 3: 1, 50: 1}),
        (dict(schedule="poly", poly_power=1.0, warmup_steps=20), {9: 0.5, 20: 1, 60: 0.5, 100: 0}),
    ],
    ids=str,
)
def test_schedules(options, expected):
    c = configs.defaults().optimizer
    c.update(lr=2.0, **options)
    rate = optimizer.learning_rate(c, 100)
    assert {t: float(rate(t)) for t in expected} == pytest.approx({t: 2 * v for t, v in expected.items()}, abs=1e-6)


@pytest.mark.parametrize(
    "options, where, hint",
    [
        (dict(name="adan"), "optimizer.name", "'adam'"),
        (dict(schedule="cosin"), "optimizer.schedule", "'cosine'"),
        (dict(groups={"encodr": 0.1}), "optimizer.groups.encodr", "'encoder'"),
        (dict(groups={"encoder": -1.0}), "optimizer.groups.encoder", ""),
        (dict(groups={"encoder": 0.0}), "optimizer.groups", ""),
        (dict(groups={"encoder": {"scale": -1.0}}), "optimizer.groups.encoder", ""),
        (dict(groups={"encoder": {"decay": 0.1}}), "optimizer.groups.encoder.decay", "weight_decay"),
        (dict(groups={"encoder": {"lr": 0.1}}), "optimizer.groups.encoder.lr", "scale"),
        (dict(groups={"encoder": {"name": "adan"}}), "optimizer.groups.encoder.name", "'adam'"),
        (dict(groups={"encoder": {"b1": 2.0}}), "optimizer.groups.encoder.b1", ""),
        (dict(groups={"encoder": "fast"}), "optimizer.groups.encoder", ""),
        (dict(floor=-1.0), "optimizer.floor", ""),
        (dict(warmup_steps=100), "optimizer.warmup_steps", ""),
        (dict(lr=0.0), "optimizer.lr", ""),
        (dict(lr=float("nan")), "optimizer.lr", ""),
        (dict(clip_norm=-1.0), "optimizer.clip_norm", ""),
        (dict(ema=1.0), "optimizer.ema", ""),
    ],
    ids=str,
)
def test_bad_optimizers(options, where, hint):
    c = configs.defaults().optimizer
    c.update(options)
    with pytest.raises(InputError) as error:
        optimizer.make_optimizer(c, {"w": "encoder", "f": "frozen"}, 100)
    assert error.value.where == where and hint in error.value.hint


# ---- The step


def quadratic(bad_from=10**6):
    """(params - target)^2, with noise that depends on the step's key, and not a number from step `bad_from` on."""

    def loss(params, model_state, batch, rng, step):
        noise = jax.random.normal(rng, ())
        value = ((params["w"] - batch["x"].mean()) ** 2).sum() + (params["still"] ** 2).sum()
        value = value + jnp.where(step >= bad_from, jnp.inf * 0, 0.0)
        return value, ({"count": model_state["count"] + 1}, {"noise": noise})

    return Method("quadratic", {}, 1, "none", None, loss, None, lambda p: {"w": "a", "still": "frozen"})


def stepper(method, seed=0, ema=0.0, accumulate=1):
    c = configs.defaults().optimizer
    c.update(name="sgd", lr=0.1, momentum=0.0)
    params = {"w": jnp.ones(3), "still": jnp.ones(2)}
    labels = method.param_groups(params)
    tx = optimizer.make_optimizer(c, labels, 10)
    step = make_train_step(method, tx, trainable=optimizer.trainable(c, labels), seed=seed, ema=ema,
                           accumulate=accumulate, learning_rate=optimizer.learning_rate(c, 10))  # fmt: skip
    return jax.jit(step), TrainState.create({"params": params, "count": jnp.zeros(())}, tx, ema=ema > 0)


BATCH = {"x": jnp.full(4, 3.0)}


def test_step_by_hand():
    step, state = stepper(quadratic(), ema=0.75)
    state, metrics = step(state, BATCH)
    np.testing.assert_allclose(state.params["w"], np.full(3, 1 - 0.1 * 2 * (1 - 3)), rtol=1e-6)
    np.testing.assert_array_equal(state.params["still"], np.ones(2))
    np.testing.assert_allclose(state.ema["w"], np.full(3, 0.75 * 1 + 0.25 * 1.4), rtol=1e-6)
    assert int(state.step) == 1 and int(state.bad_step) == -1 and float(state.model_state["count"]) == 1
    found = {k: float(v) for k, v in metrics.items()}
    assert found["loss"] == pytest.approx(3 * 4 + 2)
    assert found["grad_norm"] == pytest.approx(4 * 3**0.5)  # without the frozen parameters
    assert found["update_norm"] == pytest.approx(0.4 * 3**0.5)
    assert found["param_norm"] == pytest.approx((3 * 1.4**2 + 2) ** 0.5)
    assert found["lr"] == pytest.approx(0.1)


def test_accumulated_by_hand():
    step, state = stepper(quadratic(), accumulate=2)
    state, metrics = step(state, {"x": jnp.array([1.0, 3.0, 1.0, 7.0])})  # parts: every second clip, means 1 and 5
    np.testing.assert_allclose(state.params["w"], np.full(3, 1 - 0.1 * (0 + 2 * (1 - 5)) / 2), rtol=1e-6)
    np.testing.assert_array_equal(state.params["still"], np.ones(2))
    assert float(metrics["loss"]) == pytest.approx((0 + 3 * 16) / 2 + 2)
    assert float(state.model_state["count"]) == 2 and int(state.step) == 1
    bad, state = stepper(quadratic(bad_from=0), accumulate=2)
    state, metrics = bad(state, BATCH)
    assert int(metrics["bad_step"]) == 0 and float(state.model_state["count"]) == 0


def test_accumulated_run(tmp_path):
    """A method whose loss is a mean over clips sees the same gradient in parts; its batch statistics are the parts'."""
    options = {"steps": 3, "batch_size": 4, "augment__hflip": 0.0, "eval__every_steps": 0}
    whole, parts = (
        train(recipe(**options, accumulate=n), tmp_path / str(n)).state.params["head"]["kernel"] for n in (1, 2)
    )
    assert 0 < np.abs(np.asarray(whole) - np.asarray(parts)).max() < 0.02  # dropout and statistics differ, no more
    with pytest.raises(InputError, match=r"parts of batch_size = 4 clips.*found 3 parts"):
        train(recipe(**options, accumulate=3), tmp_path / "3")
    with pytest.raises(InputError, match=r"accumulate.*as the run was started with"):
        train(recipe(**options, accumulate=4), tmp_path / "2")


def test_randomness_is_of_seed_and_step():
    def noise(seed, start, count):
        step, state = stepper(quadratic(), seed)
        state = state.replace(step=jnp.int32(start))
        found = []
        for _ in range(count):
            state, metrics = step(state, BATCH)
            found.append(float(metrics["noise"]))
        return found

    assert noise(0, 0, 4)[2:] == noise(0, 2, 2)
    assert len(set(noise(0, 0, 4) + noise(1, 0, 4))) == 8


def test_not_a_number_changes_nothing():
    step, state = stepper(quadratic(bad_from=2), ema=0.5)
    for _ in range(2):
        state, metrics = step(state, BATCH)
    good = jax.device_get(state)
    assert int(metrics["bad_step"]) == -1
    for _ in range(3):
        state, metrics = step(state, BATCH)
    assert int(metrics["bad_step"]) == int(state.bad_step) == 2  # the first one, however late it is asked for
    jax.tree.map(np.testing.assert_array_equal, good, jax.device_get(state.replace(bad_step=jnp.int32(-1))))


# ---- The log


def test_log_is_cut_where_the_run_resumes(tmp_path):
    lines = [
        b'{"step": 2, "loss": 1}\n',
        b'{"step": 4, "loss": 1}\n',
        b'{"step": 4, "eval/miou": 1}\n',
        b'{"step": 6}\n',
    ]

    def resumed(content, step, evaluated=True):
        (tmp_path / "metrics.jsonl").write_bytes(content)
        Log(tmp_path, step=step, evaluated=evaluated, total=9, batch_size=1, clock=Clock(), tensorboard=False).close()
        return (tmp_path / "metrics.jsonl").read_bytes()

    whole = b"".join(lines)
    assert resumed(whole, 6) == resumed(whole, 7) == whole
    assert resumed(whole, 4) == b"".join(lines[:3])
    assert resumed(whole, 4, evaluated=False) == b"".join(lines[:2])  # the evaluation will be done again
    assert resumed(whole, 0) == b""
    assert resumed(whole[:-3], 9) == b"".join(lines[:3])  # a torn line
    assert resumed(lines[0] + b"\x00\x00\x00", 9) == lines[0]


def test_log_writes_json_and_events(tmp_path, capsys):
    log = Log(tmp_path, step=0, evaluated=False, total=10, batch_size=4, clock=Clock(), tensorboard=True)
    log.first_step(1)
    log.train(5, {"loss": 0.25, "lr": 1e-4})
    log.evaluation(5, {"miou": 0.5, "fdr": float("nan")}, seconds=3.0)
    log.sync()
    log.close()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines == [{"step": 5, "loss": 0.25, "lr": 1e-4}, {"step": 5, "eval/miou": 0.5, "eval/fdr": None}]
    first, timing, _ = map(json.loads, (tmp_path / "timing.jsonl").read_text().splitlines())
    assert first["first_step_s"] > 0
    assert timing["step"] == 5 and timing["clips_per_s"] > 0 and timing["eta_s"] >= 0
    assert re.search(r"step 5/10  loss 0.2500 .*clips/s  eta 0:00:0\d  input wait", capsys.readouterr().out)
    assert list((tmp_path / "tensorboard").iterdir())


# ---- Whole runs


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run")
    return workdir, train(recipe(), workdir)


def test_run_returns_its_state_and_leaves_its_workdir(finished):
    workdir, result = finished
    assert int(result.state.step) == 12 and result.stopped_by == 0
    assert 0 <= result.figures["miou"] <= 1
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    evaluations = [line["step"] for line in lines if "eval/miou" in line]
    assert [line["step"] for line in lines if "loss" in line] == [1, 3, 6, 9, 12] and evaluations == [6, 12]
    assert {"squared_error", "loss", "grad_norm", "update_norm", "param_norm", "lr"} < lines[0].keys()
    assert not {"clips_per_s", "eta_s", "input_wait"} & set().union(*lines)
    saved = configs.load(workdir / "config.json")
    assert saved.method.name == "small" and saved.steps == 12
    steps = {int(p.name) for p in (workdir / "checkpoints").iterdir()}
    best = max((line for line in lines if "eval/miou" in line), key=lambda line: (line["eval/miou"], line["step"]))
    assert steps == {8, 12, best["step"]}


def test_training_learns_and_leaves_the_frozen_alone(finished):
    workdir, result = finished
    method = build.build_method(recipe())
    source = build.build_source(recipe(), "train")
    start = method.init(jax.random.key(0), build.example_batch(source))["params"]
    end = result.state.params
    np.testing.assert_array_equal(start["audio"]["kernel"], end["audio"]["kernel"])
    assert np.abs(np.asarray(start["head"]["kernel"]) - end["head"]["kernel"]).max() > 0.05
    losses = [json.loads(line).get("loss") for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert [x for x in losses if x is not None][-1] < losses[0]


def test_load_checkpoint(finished):
    workdir, result = finished
    method, variables = avs_jax.load_checkpoint(workdir, "latest")
    assert method.name == "small"
    # the moving average is what is evaluated, and what is loaded
    jax.tree.map(np.testing.assert_array_equal, variables["params"], result.state.ema)
    jax.tree.map(np.testing.assert_array_equal, variables["batch_stats"], result.state.model_state["batch_stats"])
    _, best = avs_jax.load_checkpoint(workdir)
    figures = avs_jax.metrics.evaluate(method, best, build.build_source(recipe(), "eval"), conditions=("true",))
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert figures["miou"] == max(line.get("eval/miou", 0) for line in lines)


def test_start_from_another_run(finished, tmp_path):
    workdir, _ = finished
    source = build.build_source(recipe(), "train")
    c = recipe()
    method = build.build_method(c)
    variables = method.init(jax.random.key(1), build.example_batch(source))
    c.pretrained.method = str(workdir)
    loaded = build.load_pretrained(c, method, variables)
    expected = avs_jax.load_checkpoint(workdir)[1]
    jax.tree.map(np.testing.assert_array_equal, loaded, expected)
    wrong = {**variables, "params": {**variables["params"], "head": {"kernel": jnp.zeros((2, 1))}}}
    with pytest.raises(InputError, match=r"params\.head"):
        build.load_pretrained(c, method, wrong)


@pytest.mark.parametrize(
    "changes, where",
    [
        (dict(seed=1), "config.seed"),
        (dict(batch_size=3), "config.batch_size"),
        (dict(method__width=7), "config.method.width"),
        (dict(optimizer__lr=0.1), "config.optimizer.lr"),
        (dict(data__train__length=6), "data.clips"),
        (dict(data__image_size=64), "data.source.image_size"),
        (dict(augment__hflip=0.25), "data.augment.hflip"),
    ],
    ids=str,
)
def test_another_run_does_not_resume_here(finished, changes, where):
    workdir, _ = finished
    before = (workdir / "config.json").read_text()
    with pytest.raises(InputError) as error:
        train(recipe(**changes), workdir)
    assert error.value.where == f"{workdir}, {where}"
    assert (workdir / "config.json").read_text() == before


@pytest.mark.parametrize(
    "changes, where, found",
    [
        (dict(batch_size=0), "batch_size", "0"),
        (dict(steps=0), "steps, epochs", "0, 0.0"),
        (dict(epochs=2.0), "steps, epochs", "12, 2.0"),
        (dict(precision="float16"), "precision", "'float16'"),
        (dict(precision="bfloat16"), "method.compute_dtype", "'compute_dtype'"),
        (dict(method__name="smal"), "method.name", "'smal'"),
        (dict(data__source="syntetic"), "data.source", "'syntetic'"),
        (dict(augment__scale=(0.0, 1.0)), "augment.scale", "(0.0, 1.0)"),
        (dict(seed=-1), "seed", "-1"),
    ],
    ids=str,
)
def test_bad_configs(changes, where, found, tmp_path):
    with pytest.raises(InputError) as error:
        c = recipe(**changes)
        train(c, tmp_path)
    assert (error.value.where, error.value.found) == (where, found)


def test_a_folder_with_a_bad_clip(tmp_path, caplog):
    root = write_tree(tmp_path / "data", setting="ms3")
    (root / "Multi-sources" / "ms3_data" / "gt_masks" / "train" / "trainclip_1" / "trainclip_1_2.png").write_bytes(
        b"no"
    )
    c = recipe(arg="steps=3", log__every_steps=1, eval__best="fscore")
    c.data = configs.defaults().data
    c.data.update(source="avsbench", root=str(root), setting="ms3", image_size=32)
    with pytest.raises(InputError, match=r"trainclip_1_2\.png"):
        train(c, tmp_path / "run")
    c.loader.skip_bad = c.loader.cache = True
    result = train(c, tmp_path / "run2")
    assert int(result.state.step) == 3 and "skipped 1 of 3 clips" in caplog.text
    assert "trainclip_1" in caplog.text


def test_epochs():
    assert build.total_steps(recipe(steps=0, epochs=3.0, batch_size=2), 5) == 8


def test_best_must_be_a_figure(tmp_path):
    with pytest.raises(InputError, match=r"eval.best.*Did you mean 'miou'"):
        train(recipe(arg="steps=3", eval__best="mio"), tmp_path)


def test_not_a_number_stops_the_run(tmp_path):
    c = recipe(arg="steps=40", method__nan_after=9, checkpoint__every_steps=4, log__every_steps=5)
    source = build.build_source(c, "train")
    indices = pipeline.train_indices(len(source), seed=c.seed, batch_size=c.batch_size, step=9)
    with pytest.raises(TrainingError) as error:
        train(c, tmp_path)
    text = str(error.value)
    assert "step 10: loss or gradient is not finite" in text and "last good checkpoint is that of step 8" in text
    assert all(source.ids[i] in text for i in indices)
    assert max(int(p.name) for p in (tmp_path / "checkpoints").iterdir()) == 8
    _, variables = avs_jax.load_checkpoint(tmp_path, "latest")
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(variables))
    assert "NaN" not in (tmp_path / "metrics.jsonl").read_text()


# ---- Damage


def damage(folder, how):
    if how == "meta":
        (folder / "meta" / "metadata").write_text('{"step": ')
    elif how == "empty":
        shutil.rmtree(folder)
        folder.mkdir()
    elif how == "cut":
        for p in data_files(folder):
            p.write_bytes(p.read_bytes()[: p.stat().st_size // 2])


def data_files(folder):
    """Orbax's array data, the largest file last."""
    return sorted((p for p in folder.rglob("d/*") if p.is_file()), key=lambda p: p.stat().st_size)


def test_one_flipped_bit_is_found(tmp_path, capsys):
    tx = optax.identity()
    noise = np.random.default_rng(0).standard_normal((100, 1000)).astype(np.float32)
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])

    def state(step):
        made = TrainState.create({"params": {"w": jnp.asarray(noise + step)}}, tx)
        return jax.device_put(made.replace(step=jnp.int32(step)), device)

    saver = Checkpoints(tmp_path, keep=2, best="miou")
    for step in (3, 5):
        saver.save(step, state(step), identity={"seed": 0})
    saver.close()
    file = data_files(tmp_path / "checkpoints" / "5" / "variables")[-1]
    content = bytearray(file.read_bytes())
    assert len(content) > 200_000  # so that the middle is array data, which Orbax itself reads without a word
    content[len(content) // 2] ^= 0x10
    file.write_bytes(content)

    saver = Checkpoints(tmp_path, keep=2, best="miou")
    abstract = placed(jax.eval_shape(lambda: state(0)), device)
    restored, meta = saver.restore(abstract, {"seed": 0})
    assert meta["step"] == int(restored.step) == 3
    assert "checkpoint of step 5 is damaged (checksum of params/w)" in capsys.readouterr().err
    np.testing.assert_array_equal(restored.params["w"], state(3).params["w"])
    saver.save(5, state(5), identity={"seed": 0})  # the damaged one is out of the way
    saver.close()
    with pytest.raises(InputError, match=r"array params/w"):  # another network is no damage
        smaller = abstract.replace(params={"w": jax.ShapeDtypeStruct((2,), np.float32, sharding=device)})
        Checkpoints(tmp_path, keep=2, best="miou").restore(smaller, {"seed": 0})


@pytest.mark.parametrize("how", ["meta", "empty", "cut"])
def test_damaged_checkpoints_are_passed_over(finished, tmp_path, how, capsys):
    workdir, result = finished
    subprocess.run(["cp", "-r", f"{workdir}/.", str(tmp_path)], check=True)
    damage(tmp_path / "checkpoints" / "12", how)
    avs_jax.load_checkpoint(tmp_path, "latest")
    assert "checkpoint" in capsys.readouterr().err
    again = train(recipe(), tmp_path)
    assert "step 12 is damaged" in capsys.readouterr().err
    jax.tree.map(np.testing.assert_array_equal, again.state, result.state)
    assert (tmp_path / "metrics.jsonl").read_bytes() == (workdir / "metrics.jsonl").read_bytes()
    assert list((tmp_path / "checkpoints-damaged").iterdir())


def test_only_damaged_checkpoints(finished, tmp_path):
    workdir, _ = finished
    subprocess.run(["cp", "-r", f"{workdir}/.", str(tmp_path)], check=True)
    for folder in (tmp_path / "checkpoints").iterdir():
        damage(folder, "meta")
    with pytest.raises(InputError, match="only damaged ones"):
        avs_jax.load_checkpoint(tmp_path)
    with pytest.raises(InputError, match="an undamaged checkpoint"):
        train(recipe(), tmp_path)


def test_nothing_to_load(tmp_path):
    with pytest.raises(InputError, match=r"config\.json.*no such file"):
        avs_jax.load_checkpoint(tmp_path)
    configs.save(recipe(), tmp_path / "config.json")
    with pytest.raises(InputError, match="a checkpoint; found none"):
        avs_jax.load_checkpoint(tmp_path)
    with pytest.raises(InputError, match="'best' or 'latest'"):
        avs_jax.load_checkpoint(tmp_path, "newest")


# ---- The command


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--config.optimizer.lrr=1"], "--config.optimizer.lrr: expected a field of section 'optimizer'; found 'lrr'. "
         "Did you mean 'lr'?"),
        (["--config.lr=1"], "Did you mean '--config.optimizer.lr'?"),
        (["--config.method.widht=4"], "--config.method.widht: expected a field of section 'method'; found 'widht'. "
         "Did you mean 'width'?"),
        (["--confg=1"], "Did you mean: config"),
        (["--config.steps=many"], "invalid literal for int"),
    ],
    ids=str,
)  # fmt: skip
def test_typos_are_told_in_one_line(flags, message, tmp_path):
    command = [sys.executable, "-m", "avs_jax.train", f"--config={SMALL}", f"--workdir={tmp_path}", *flags]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1 and message in done.stderr


def test_missing_recipe_and_its_bad_argument(tmp_path):
    for recipe_flag, message in (("none.py", "found 'none.py'"), (f"{SMALL}:stepps=3", "Did you mean 'steps'?")):
        command = [sys.executable, "-m", "avs_jax.train", f"--config={recipe_flag}", f"--workdir={tmp_path}"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr


def test_two_devices_train_as_one(finished, tmp_path):
    workdir, _ = finished
    environment = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    command = [sys.executable, "-m", "avs_jax.train", f"--config={SMALL}", f"--workdir={tmp_path}"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and "on 2 cpu device(s)" in done.stdout, done.stderr
    one, two = ((w / "metrics.jsonl").read_text().splitlines() for w in (workdir, tmp_path))
    assert len(one) == len(two)
    for a, b in zip(map(json.loads, one[:2]), map(json.loads, two[:2]), strict=True):
        assert a == pytest.approx(b, rel=1e-4), "steps 1 and 3"


# ---- The published recipe


def test_tpavi_recipe_is_the_papers():
    c = recipe(ROOT / "configs" / "tpavi.py", "setting=s4,backbone=resnet50,root=/data")
    assert (c.steps, c.epochs, c.batch_size, c.optimizer.name, c.optimizer.lr) == (0, 15.0, 4, "adam", 1e-4)
    assert (c.optimizer.weight_decay, c.optimizer.clip_norm, c.optimizer.schedule) == (0.0, 0.0, "constant")
    assert (c.data.root, c.data.setting, c.data.train.split, c.data.eval.split) == ("/data", "s4", "train", "val")
    assert recipe(ROOT / "configs" / "tpavi.py").epochs == 30.0
    with pytest.raises(InputError, match="Did you mean 'ms3'"):
        recipe(ROOT / "configs" / "tpavi.py", "setting=ms")


@pytest.mark.slow
def test_tpavi_recipe_made_tiny_trains(tmp_path):
    c = recipe(ROOT / "configs" / "tpavi.py", "dataset=synthetic,backbone=resnet10,setting=s4")
    c.update(epochs=0.0, steps=2, batch_size=2, precision="bfloat16")
    c.method.update(width=4, channels=8, neck_dilations=(1,), head_channels=(4, 4), tpavi_stages=(3,))
    c.method.update(audio_width=1, audio_hidden=4)
    c.data.image_size, c.eval.max_clips, c.log.tensorboard = 32, 1, False
    c.data.train.length = c.data.eval.length = 3
    result = train(c, tmp_path)
    assert int(result.state.step) == 2 and int(result.state.bad_step) == -1
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(result.state.params))
    method, variables = avs_jax.load_checkpoint(tmp_path)
    assert method.options["compute_dtype"] == "bfloat16"
    jax.tree.map(np.testing.assert_array_equal, variables["params"], result.state.params)


def test_no_evaluation_before_the_first_step():
    from avs_jax.training.loop import Loop, Schedule

    schedule = Schedule.of(recipe(eval__every_steps=2, eval__first_step=5), 9)
    nothing = dict.fromkeys(("evaluate", "checkpoints", "log", "clock", "interrupt", "ids"))
    loop = Loop(None, schedule, identity={}, **nothing)
    assert [step for step in range(10) if loop._evaluation_due(step)] == [6, 8, 9]
