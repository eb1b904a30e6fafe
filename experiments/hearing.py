"""One audio encoder for all runs of a seed, where no public one knows the sounds: taught to name them, then a file.

It takes the place that VGGish's file has on AVSBench: runs with another setting, backbone or fusion hear the same.
"""

import hashlib
import json
import types
from pathlib import Path

from avs_jax.errors import InputError

SETTING = "multi"  # of the embedded data set: the same sounds in every setting


def taught(config, folder: Path) -> Path:
    """The file of an audio encoder taught as the config's `tagging` section says; made where it is missing.

    A function of the seed, the `tagging` section, the data set's options without its setting, and the encoder's sizes.

    Args:
      config: of a run, with tagging.steps above 0.
      folder: of such files.
    Raises:
      InputError: a data set that cannot name its sounds.
    """
    import jax
    import jax.numpy as jnp

    from avs_jax.data.sources import create_source
    from avs_jax.models.encoders import create_encoder
    from avs_jax.models.initialise import initialise
    from avs_jax.training import tagging
    from avs_jax.weights import to_torch
    from avs_jax.weights.writing import save_state_dict

    if config.data.source != "synthetic":
        raise InputError("tagging.steps", expected="0 for this data set", found=str(config.tagging.steps))
    method = config.method.to_dict()
    sizes = {name: method[f"audio_{name}"] for name in ("width", "hidden") if f"audio_{name}" in method}
    data = {k: v for k, v in config.data.to_dict().items() if k not in ("source", "train", "eval", "test")}
    data |= {**config.data.train.to_dict(), "setting": SETTING}
    made_of = {"seed": config.seed, "tagging": config.tagging.to_dict(), "data": data, "sizes": sizes}
    digits = hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()[:8]
    path = folder / f"audio-seed{config.seed}-{digits}.safetensors"
    if path.exists():
        return path
    vggish, source = create_encoder("vggish", **sizes), create_source("synthetic", **data)
    audio = tagging.load_audio(source)
    params = initialise(vggish, jax.random.key(config.seed), jnp.asarray(audio[0]))["params"]
    alone = types.SimpleNamespace(embed_audio=lambda params, sounds: vggish.apply({"params": params}, sounds))
    variables = {"params": {"audio": params}}
    variables = tagging.teach(alone, variables, source, audio, seed=config.seed, **config.tagging)
    folder.mkdir(parents=True, exist_ok=True)
    save_state_dict(path, to_torch(vggish, {"params": variables["params"]["audio"]}))  # whole or not at all
    return path
