"""Recipes that are none, and fields of a config that do not exist, are of another type or mean nothing.

A run must refuse all of them before it trains: nothing may be written, not even its folder.
"""

from bad_input import Row, at, locked, put

RECIPE = "train --config=r.py --workdir=out"
DEFAULTS = "from avs_jax import config\n\n\ndef get_config(arg=None):\n    c = config.defaults()\n"
FIELDS = {  # what is given -> words of the error
    "seed=-1": "seed; at least 0; -1",
    "steps=-1": "steps; at least 0; -1",
    "steps=0' '--config.epochs=0": "steps, epochs; one of them above 0",
    "epochs=-1": "epochs; -1.0",
    "epochs=nan": "epochs; nan",
    "batch_size=0": "batch_size; at least 1; 0",
    "batch_size=-1": "batch_size; -1",
    "batch_size=2.5": "--config.batch_size=2.5; '2.5'",
    "accumulate=0": "accumulate; at least 1; 0",
    "accumulate=3": "accumulate; 3 parts",
    "precision=float23": "precision; Did you mean 'float32'?",
    "pretrained.encoder=nowhere.pth": "config.pretrained.encoder; 'nowhere.pth': no such file",
    "pretrained.audio=vggish-10086976.pth": "config.pretrained.audio; Fetch https://; weights/vggish-10086976.pth",
    "pretrained.method=nowhere": "config.pretrained.method; 'nowhere': no such file",
    "method.name=tpvai": "method.name; Did you mean 'tpavi'?",
    "method.name=nowhere.py": "method.name; a Python file; no file",
    "method.name=no.such.module": "method.name; no module 'no.such.module'",
    "method.nan_aftr=1": "--config.method.nan_aftr; Did you mean 'nan_after'?",
    "method.width=wide": "--config.method.width=wide; 'wide'",
    "data.source=synthetik": "data.source; Did you mean 'synthetic'?",
    "data.image_size=0": "data.image_size; at least 16; 0",
    "data.image_size=-1": "data.image_size; -1",
    "data.train.length=0": "data.length; at least 1; 0",
    "data.train.split=trian": "data.split; Did you mean 'train'?",
    "data.eval.split=vall": "data.split; data.eval; Did you mean 'val'?",
    "data.test.split=tst": "data.split; data.test; Did you mean 'test'?",
    "data.test.lenth=2": "--config.data.test.lenth; Did you mean 'length'?",
    "data.setting=s4": "data.setting; 's4'; single, multi, semantic",
    "data.schedule=per_secnd": "data.schedule; Did you mean 'per_second'?",
    "data.difficulty=esy": "data.difficulty; Did you mean 'easy'?",
    "data.seed=-1": "data.seed; -1",
    "data.front_end=vgish": "data.front_end; Did you mean 'vggish'?",
    "data.seconds=2.0": "data.seconds; nothing with front end 'vggish'",
    "data.roots=/x": "--config.data.roots; section 'data'",
    "augment.hflip=2": "augment.hflip; [0, 1]; 2.0",
    "augment.hflip=-0.1": "augment.hflip; -0.1",
    "augment.hflip=nan": "augment.hflip; nan",
    "augment.scale=(1.2,0.8)": "augment.scale; (1.2, 0.8)",
    "augment.scale=(0,1)": "augment.scale; 0 < low; (0, 1)",
    "augment.scale=(1.0,2.0,3.0)": "augment.scale; (1.0, 2.0, 3.0)",
    "augment.color=2": "augment.color; 2.0",
    "augment.hue=0.7": "augment.hue; [0, 0.5]; 0.7",
    "augment.crop=-1": "augment.crop; -1",
    "augment.scales=(0,)": "augment.scales; above 0",
    "augment.scales=(1.0,)": "augment.scales; augment.crop",
    "pairing.rule=clas": "pairing.rule; Did you mean 'class'?",
    "pairing.rate=2": "pairing.rate; [0, 1]; 2.0",
    "loader.workers=-1": "loader.workers; at least 0; -1",
    "loader.threads=-1": "loader.threads; -1",
    "loader.prefetch=-1": "loader.prefetch; -1",
    "loader.cache=2": "--config.loader.cache=2",
    "optimizer.name=adm": "optimizer.name; Did you mean 'adam'?",
    "optimizer.lr=0": "optimizer.lr; above 0; 0.0",
    "optimizer.lr=-1": "optimizer.lr; -1.0",
    "optimizer.lr=nan": "optimizer.lr; nan",
    "optimizer.lr=fast": "--config.optimizer.lr=fast; 'fast'",
    "optimizer.b1=1": "optimizer.b1; [0, 1); 1.0",
    "optimizer.b2=2": "optimizer.b2; 2.0",
    "optimizer.eps=0": "optimizer.eps; above 0",
    "optimizer.momentum=1": "optimizer.momentum; [0, 1)",
    "optimizer.weight_decay=-1": "optimizer.weight_decay; at least 0",
    "optimizer.clip_norm=-1": "optimizer.clip_norm; at least 0",
    "optimizer.schedule=cosin": "optimizer.schedule; Did you mean 'cosine'?",
    "optimizer.poly_power=-1": "optimizer.poly_power; above 0",
    "optimizer.warmup_steps=-1": "optimizer.warmup_steps; -1",
    "optimizer.warmup_steps=2": "optimizer.warmup_steps; steps (2); --config.optimizer.warmup_steps=0",
    "optimizer.final_scale=-1": "optimizer.final_scale; at least 0",
    "optimizer.floor=-1": "optimizer.floor; at least 0",
    "optimizer.lag=-1": "optimizer.lag; at least 0",
    "optimizer.ema=1": "optimizer.ema; [0, 1)",
    "tagging.steps=-1": "tagging.steps; at least 0",
    "tagging.steps=3": "tagging.steps; method without sounds to name",
    "tagging.batch_size=0": "tagging.batch_size; at least 1",
    "tagging.lr=-1": "tagging.lr; above 0",
    "eval.every_steps=-1": "eval.every_steps; at least 0",
    "eval.first_step=-1": "eval.first_step; at least 0",
    "eval.batch_size=0": "eval.batch_size; at least 1",
    "eval.max_clips=-1": "eval.max_clips; at least 0",
    "eval.report=tset": "eval.report; a split; Did you mean 'test'?",
    "eval.best=mioo": "eval.best; Did you mean 'miou'?",
    "eval.best=miou_classes": "eval.best; 'miou_classes'",
    "checkpoint.every_steps=-1": "checkpoint.every_steps; at least 0",
    "checkpoint.keep=0": "checkpoint.keep; at least 1; 0",
    "log.every_steps=-1": "log.every_steps; at least 0",
    "log.tensorboard=maybe": "--config.log.tensorboard=maybe",
    "bach_size=4": "--config.bach_size; Did you mean 'batch_size'?",
    "optimiser.lr=4": "--config.optimiser.lr; Did you mean '--config.optimizer.lr'?",
    "optimizer.rate=4": "--config.optimizer.rate; section 'optimizer'",
    "method.name=tpavi": "method.nan_after; an option of 'tpavi'",
}
RECIPES = {  # fault -> (the file, words)
    "syntax": ("def get_config(:", "r.py, line 1; a recipe that runs; SyntaxError"),
    "bytes that are no text": (b"\xff\xfe bad", "r.py; SyntaxError; 0xff"),
    "NUL bytes": (b"x = 1\0", "r.py; SyntaxError; null bytes"),
    "without get_config": ("x = 1", "defines get_config; none in 'r.py'"),
    "get_config is a number": ("get_config = 3", "r.py; 'int' object is not callable"),
    "get_config raises": ("def get_config(arg=None):\n    raise KeyError('boo')", "r.py, line 2; KeyError: 'boo'"),
    "fails when imported": ("import os\nraise RuntimeError('no data')", "r.py, line 2; RuntimeError: no data"),
    "imports what is not there": ("import nothing_like_it", "r.py, line 1; No module named 'nothing_like_it'"),
    "exits": ("import sys\nsys.exit(3)", "r.py, line 2; SystemExit: 3"),
    "returns nothing": (DEFAULTS, "r.py; config.defaults(); found None"),
    "returns a dict": ("def get_config(arg=None):\n    return {'steps': 1}", "r.py; config.defaults(); dict"),
    "returns an empty config": ("import ml_collections\ndef get_config():\n    return ml_collections.ConfigDict()",
                                "Start from avs_jax.config.defaults()"),
}  # fmt: skip
LINES = {  # fault -> (a line of get_config, words)
    "text for a number": ("c.batch_size = 'four'", "r.py, line 6; batch_size; four"),
    "a field that does not exist": ("c.bach_size = 4", "config.bach_size; Did you mean 'batch_size'?"),
    "a field of a section that does not exist": ("c.optimizer.lrr = 4", "config.optimizer.lrr; Did you mean 'lr'?"),
    "a field is missing": ("del c.seed", "config.seed; nothing; defaults()"),
    "a section is missing": ("del c.optimizer", "config.optimizer; nothing; defaults()"),
    "a section is a number": ("c.optimizer = 3", "r.py, line 6; optimizer"),
    "a section is None": ("c.eval = None", "config.eval; a section; nothing"),
    "the method is None": ("c.method = None", "config.method; a section; nothing"),
    "the method has no name": ("del c.method.name", "config.method.name; nothing"),
    "the data set has no name": ("c.data.source = None", "config.data.source; nothing"),
    "a split's options are missing": ("del c.data.eval", "config.data.eval; nothing"),
    "true for a number": ("c.steps = True", "config.steps; a whole number; True"),
    "text for a probability": ("c.augment.hflip = 'often'", "r.py, line 6; hflip; often"),
    "text in a range": ("c.augment.scale = ('a', 'b')", "config.augment.scale; several numbers"),
    "both lengths": ("c.steps, c.epochs = 10, 1.0", "steps, epochs; one of them above 0; 10, 1.0"),
    "no split": ("c.data.train.split = None", "data.split; None"),
    "no image size": ("c.data.image_size = None", "data.image_size; None"),
}
GROUPS = {
    "that match nothing": ("encodr=0.5", "optimizer.groups.encodr; Did you mean 'encoder'?"),
    "with an unknown option": ("encoder={'scal': 1.0}", "optimizer.groups.encoder.scal; Did you mean 'scale'?"),
    "with text": ("encoder='slow'", "optimizer.groups.encoder; a multiplier; 'slow'"),
    "with a negative multiplier": ("encoder=-1.0", "optimizer.groups.encoder; -1.0"),
    "that freeze everything": ("encoder=0.0, head=0.0", "optimizer.groups; every group frozen"),
    "with an unknown optimiser": ("encoder={'name': 'adm'}", "optimizer.groups.encoder.name; Did you mean 'adam'?"),
}
SMALL = "c.method = {'name': 'method.py'}; c.data.image_size = 32; c.optimizer.groups.update("


def rows():
    for given, told in FIELDS.items():
        yield Row(f"config: {given}", told, f"train --config=recipe.py --workdir=out '--config.{given}'")
    for name, (content, told) in RECIPES.items():
        yield Row(f"recipe: {name}", told, RECIPE, at("r.py", put(content)))
    for name, (line, told) in LINES.items():
        yield Row(f"recipe: {name}", told, RECIPE, at("r.py", put(f"{DEFAULTS}    {line}\n    return c\n")))
    for name, (groups, told) in GROUPS.items():
        recipe = f"{DEFAULTS}    {SMALL}{groups})\n    return c\n"
        yield Row(f"recipe: groups {name}", told, RECIPE, at("r.py", put(recipe)))
    yield Row("recipe: takes no argument", "r.py; takes 0 positional arguments", RECIPE.replace("r.py", "r.py:a=1"),
              at("r.py", put("def get_config():\n    pass")))  # fmt: skip
    yield Row("recipe: may not be read", "r.py; Permission denied", RECIPE, at("r.py", put("x = 1"), locked))
    yield Row(
        "recipe: unknown argument",
        "config argument 'a'; setting",
        "train --config=q.py:a=1 --workdir=out",
        at(
            "q.py",
            put("from avs_jax import config\n\n\ndef get_config(arg):\n    config.parse_arg(arg, setting='ms3')"),
        ),
    )


ROWS = list(rows())
