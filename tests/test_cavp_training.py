"""CAVP in training: pairs in the batches, the recipe, runs that stop and go on."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest
from test_training import recipe

import avs_jax
from avs_jax.data.sources import create_source
from avs_jax.data.sources.subset import Subset
from avs_jax.errors import InputError
from avs_jax.train import train
from avs_jax.training import build, optimizer

CONFIG = Path(__file__).parent.parent / "configs" / "cavp.py"


def small(arg="", steps=4, **changes):
    c = recipe(CONFIG, "dataset=synthetic,scale=tiny" + arg)
    c.update(steps=steps, batch_size=4)
    c.method.update(width=4, channels=12, low=4, projector=8, audio_width=4, max_views=8)
    c.data.update(image_size=32, seconds=0.5)
    c.data.train.length, c.data.eval.length, c.eval.max_clips = 9, 2, 2
    c.optimizer.update(schedule="constant", warmup_steps=0)
    c.log.every_steps = 1
    c.update_from_flattened_dict(changes)
    return c


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("cavp")
    return workdir, train(small(), workdir)


def rows(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def test_training_hears_pairs(finished):
    workdir, result = finished
    logged = [row for row in rows(workdir) if "pairing" in row]
    assert len(logged) == 4 and all(row["anchors"] > 0 for row in logged)
    assert int(result.state.bad_step) == -1 and "miou_all_classes" in result.figures
    method, variables = avs_jax.load_checkpoint(workdir, which="latest")
    assert method.paired and set(variables["params"]) >= {"audio", "fusion", "projector"}


def test_a_run_that_stopped_goes_on_to_the_same_numbers(finished, tmp_path):
    workdir, whole = finished
    train(small(steps=2), tmp_path)
    again = train(small(), tmp_path)
    jax.tree.map(np.testing.assert_array_equal, whole.state.params, again.state.params)
    jax.tree.map(np.testing.assert_array_equal, whole.state.opt_state, again.state.opt_state)
    assert [r for r in rows(tmp_path) if r.get("step", 0) > 2] == [r for r in rows(workdir) if r.get("step", 0) > 2]


@pytest.mark.parametrize("changes", [{"pairing.rate": 0.9}, {"pairing.rule": "exact"}], ids=str)
def test_other_pairs_are_another_run(finished, changes):
    workdir, _ = finished
    with pytest.raises(InputError) as error:
        train(small(**changes), workdir)
    assert error.value.where == f"{workdir}, data.{next(iter(changes))}"


@pytest.mark.parametrize("arg", [",contrastive=0.0", ",fusion=none"])
def test_what_needs_no_pairs_gets_none(arg):
    c = small(arg)
    method = build.build_method(c)
    assert not method.paired and build.pairing(c, method, create_source("synthetic", length=2)) is None


def test_binary_labels_are_paired_by_what_sounds():
    c = small(",setting=salient")
    method, source = build.build_method(c), build.build_source(c, "train")
    assert source.class_names == ("background", "sounding") and method.num_classes == 1
    _, match = build.pairing(c, method, source)(0, np.arange(4))
    assert match.shape == (4, 2)


def test_pairs_of_part_of_a_source():
    source = create_source("synthetic", setting="semantic", still=True, front_end="waveform", length=8)
    part = Subset(source, [5, 2, 7])
    c = small()
    pairs = build.pairing(c, build.build_method(c), part)
    whole = build.pairing(c, build.build_method(c), source)
    np.testing.assert_array_equal(pairs.classes, whole.classes[[5, 2, 7]])
    with pytest.raises(AttributeError):
        part.ears  # noqa: B018


def test_recipe_is_the_papers():
    c = recipe(CONFIG, "setting=vpo_ss,root=/data")
    assert (c.epochs, c.batch_size, c.optimizer.name, c.optimizer.lr) == (80.0, 16, "sgd", 1e-3)
    assert (c.optimizer.momentum, c.optimizer.weight_decay, c.optimizer.poly_power) == (0.9, 5e-4, 0.9)
    assert (c.augment.crop, c.augment.scales[0], c.augment.scales[-1], c.augment.hue) == (512, 0.5, 2.0, 0.25)
    assert (c.data.eval.split, c.eval.batch_size, c.data.test.pad) == ("test", 1, "buckets")
    assert recipe(CONFIG, "setting=single_plus").augment.scales == (0.5, 0.75, 1.0)
    assert recipe(CONFIG, "setting=salient").augment.crop == 0
    code = recipe(CONFIG, "setting=single_plus,recipe=code")
    assert (code.epochs, code.optimizer.weight_decay, code.pairing.rule) == (60.0, 1e-4, "exact")
    for wrong in ("setting=vpo", "recipe=mine", "backbone=resnet5O"):
        with pytest.raises(InputError):
            recipe(CONFIG, wrong)


@pytest.mark.parametrize("arg", ["", ",recipe=code", ",fusion=none", ",fusion=none,recipe=code"])
def test_recipe_groups_are_the_methods(arg):
    c = recipe(CONFIG, "setting=vpo_ms,root=/data" + arg)
    method = build.build_method(c)
    labels = method.param_groups(jax.eval_shape(method.init, jax.random.key(0))["params"])
    options = optimizer.group_options(c.optimizer, labels)
    assert options["segment"]["scale"] == options["segment/no_decay"]["scale"] == 10.0
    assert options["segment/no_decay"]["weight_decay"] == 0.0
    if "audio" in options:
        assert options["audio"].get("name") == ("adam" if "code" in arg else None)
    optimizer.make_optimizer(c.optimizer, labels, 100)
