"""One audio encoder for all runs of a seed, where no public one knows the sounds: taught to name them, then a file.

It takes the place that VGGish's file has on AVSBench: runs with another setting, backbone or fusion hear the same.
"""

import hashlib
import json
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

    from avs_jax.data.sources import create_source
    from avs_jax.methods import create
    from avs_jax.training import tagging
    from avs_jax.weights import to_torch
    from avs_jax.weights.writing import save_state_dict

    if config.data.source != "synthetic":
        raise InputError("tagging.steps", expected="0 for this data set", found=str(config.tagging.steps))
    sizes = {name: config.method[name] for name in ("audio_width", "audio_hidden") if name in config.method}
    data = {k: v for k, v in config.data.to_dict().items() if k not in ("source", "train", "eval", "test")}
    data |= {**config.data.train.to_dict(), "setting": SETTING}
    made_of = {"seed": config.seed, "tagging": config.tagging.to_dict(), "data": data, "sizes": sizes}
    digits = hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()[:8]
    path = folder / f"audio-seed{config.seed}-{digits}.safetensors"
    if path.exists():
        return path
    # The smallest network around the encoder; what is around it has no part in teaching it
    method = create(
        "tpavi", backbone="resnet10", width=4, channels=4, head_channels=(4, 4), neck_dilations=(1,), **sizes
    )
    source = create_source("synthetic", **data)
    variables = tagging.teach(method, method.init(jax.random.key(config.seed)), source, tagging.load_audio(source),
                              seed=config.seed, **config.tagging)  # fmt: skip
    weights = {k: v for k, v in to_torch(method, variables).items() if k.startswith(("features.", "embeddings."))}
    folder.mkdir(parents=True, exist_ok=True)
    save_state_dict(path, weights)  # whole or not at all
    return path
