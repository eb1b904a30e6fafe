"""Options that a recipe does not name, set from the command line."""

import pytest

from avs_jax import config as configs
from avs_jax import overrides
from avs_jax.errors import InputError


class Values:
    """What flags hold."""

    def __init__(self, method="transavs", **data):
        self.config = configs.defaults()
        self.config.method.name = method
        self.config.data.update(data)
        self.config.lock()


def set_options(*argv, values=None):
    values = values or Values()
    rest, taken = overrides.take(argv, values.config)
    overrides.apply(taken, values)
    return rest, values.config


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("method.class_prior=.1", 0.1),
        ("method.class_prior=1", 1.0),
        ("method.width=16", 16),
        ("method.width=none", None),
        ("method.depths=(1, 1, 1, 1)", (1, 1, 1, 1)),
        ("method.delta1=[.6, .6]", [0.6, 0.6]),
        ("method.focal_alpha=None", None),
        ("method.masked_attention=true", True),
        ("method.dice=squared", "squared"),
        ("method.pixel_options={'groups': 8}", {"groups": 8}),
        ("data.difficulty=hard", "hard"),
        ("data.image_size=64", 64),
        ("data.train.length=30", 30),
    ],
)
def test_an_option_the_recipe_does_not_name(flag, value):
    rest, config = set_options("train", f"--config.{flag}", "--config.steps=3", "--workdir=x")
    assert rest == ["train", "--config.steps=3", "--workdir=x"]
    for name in flag.partition("=")[0].split("."):
        config = config[name]
    found = config.to_dict() if hasattr(config, "to_dict") else config
    assert found == value and type(found) is type(value)


def test_fields_of_the_recipe_are_the_flags_own():
    argv = ["--config.method.name=cavp", "--config.seed=1", "--config.optimizer.rate=1", "--config=a.py", "method.x=1"]
    assert overrides.take(argv, Values().config) == (argv, {})
    assert overrides.take(["--config.method.width=1"], None) == (["--config.method.width=1"], {})


@pytest.mark.parametrize(
    ("flag", "told"),
    [
        ("method.clas_prior=.1", ["--config.method.clas_prior", "'class_prior'"]),
        ("method.compute_dtype=bfloat16", ["compute_dtype", "--config.precision"]),
        ("method.class_prior=high", ["--config.method.class_prior", "float", "'high'"]),
        ("method.class_prior=True", ["float", "'True'"]),
        ("method.num_queries=2.5", ["int", "'2.5'"]),
        ("method.num_queries=none", ["int", "'none'"]),
        ("method.delta1=.6", ["Sequence", "'.6'"]),
        ("method.width=wide", ["int or None", "'wide'"]),
        ("data.dificulty=hard", ["--config.data.dificulty", "'difficulty'"]),
        ("data.train.lenth=30", ["--config.data.train.lenth", "'length'"]),
    ],
)
def test_refused(flag, told):
    with pytest.raises(InputError) as error:
        set_options(f"--config.{flag}")
    assert all(text in str(error.value) for text in told), str(error.value)


def test_the_owner_is_the_one_named_in_the_end():
    values = Values("cavp", source="avsbench", setting="s4")
    _, config = set_options("--config.method.temperature=.2", "--config.data.root=/x", values=values)
    assert config.method.temperature == 0.2 and config.data.root == "/x"
    with pytest.raises(InputError, match="num_queries"):
        set_options("--config.method.num_queries=3", values=values)
