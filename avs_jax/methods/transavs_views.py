"""What TransAVS shows of a batch beside its prediction: its objects one by one, where its queries look, its features.

In each function `run` is (variables, batch, looks=False) -> (`models.transavs.Output`, what was stored where it looks).
"""

import jax
import jax.numpy as jnp
import numpy as np

from avs_jax.losses.query_set import dot_masks
from avs_jax.models import query_decoder, query_masks
from avs_jax.models.encoders import create_encoder
from avs_jax.models.encoders.vggish import EMBEDDING
from avs_jax.models.transavs import Network


def instances(run, variables, batch, count: int = 10, confidence: float = 0.0) -> query_masks.Instances:
    """`Method.instances`: the `count` most probable queries of each frame, as objects."""
    clips, size = np.shape(batch["frames"])[:2], np.shape(batch["frames"])[2:4]
    queries = run(variables, batch)[0].queries
    masks = dot_masks(queries.embeddings[-1], queries.features)
    found = query_masks.instances(queries.class_logits[-1], masks, size, count=count, confidence=confidence)
    return jax.tree.map(lambda x: x.reshape(*clips, *x.shape[1:]), found)


def attention(network: Network, run, variables, batch):
    """`Method.attention`: where queries look, on average by their probability of an object, each level's last layer."""
    if not network.hears:
        return {}
    output, stored = run(variables, batch, looks=True)
    p = 1 - jax.nn.softmax(output.queries.class_logits[-1])[..., -1]
    options, clips = dict(network.transformer_options), np.shape(batch["frames"])[:2]
    found = {}
    for i in range(options["decoder_layers"]):
        level = query_decoder.level_of(i, options["round_robin"])
        (weights,) = stored["intermediates"]["transformer"][f"decoder{i}"]["cross_attention"]["weights"]
        looked = jnp.einsum("fn,fnp->fp", p / p.sum(1, keepdims=True), weights)
        found[f"stage{4 - level}"] = looked.reshape(*clips, *output.levels[level].shape[1:3], 1)
    return dict(sorted(found.items()))


def features(network: Network, run, variables, batch):
    """`Method.features`: the maps of masks (stage 1) and of the levels (2 to 4), and each second's embedding."""
    output, clips = run(variables, batch)[0], np.shape(batch["frames"])[:2]
    maps = (output.queries.features, *reversed(output.levels))
    visual = {f"stage{i}": x.reshape(*clips, *x.shape[1:]) for i, x in enumerate(maps, 1)}
    if not network.hears:
        return {"visual": visual, "audio": {}}
    embedding = batch.get("audio_embedding")
    if embedding is None:
        audio = jnp.asarray(batch["audio"])
        embedding = embed_audio(network, variables["params"]["audio"], audio.reshape(-1, *audio.shape[2:]))
    return {"visual": visual, "audio": {"embedding": embedding.reshape(*clips, EMBEDDING)}}


def embed_audio(network: Network, params, audio):
    """`Method.embed_audio`: (N, 96, 64) -> (N, 128), VGGish alone."""
    vggish = create_encoder("vggish", **dict(network.audio_options), dtype=network.dtype)
    return vggish.apply({"params": params}, audio)
