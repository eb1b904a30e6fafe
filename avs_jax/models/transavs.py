"""TransAVS's network: image encoder, pixel decoder, audio encoder, and the transformer between them.

"TransAVS: End-to-end audio-visual segmentation with transformer", arXiv 2305.07223, figure 2.
"""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from avs_jax.models import query_decoder, remat, torch_keys
from avs_jax.models.decoders.pixel import create_pixel_decoder
from avs_jax.models.encoders import create_encoder
from avs_jax.models.encoders.vggish import EMBEDDING, EXAMPLE, vggish_embedding


class Output(NamedTuple):
    """What the network makes of F frames, clip by clip.

    queries: see `query_decoder.Decoded`. levels: the maps that queries looked at, (F, h, w, d) at strides 32, 16, 8.
    """

    queries: query_decoder.Decoded
    levels: tuple


class Network(nn.Module):
    """Image encoder, pixel decoder, audio encoder, queries, transformer. Fields as the options of
    `avs_jax.methods.transavs.create`, where they have the same name."""

    backbone: str
    encoder_options: Any
    freeze_encoder: bool
    pixel_decoder: str
    pixel_options: Any
    audio_options: Any
    train_audio: bool
    query_init: str
    num_queries: int
    num_frames: int
    dim: int
    classes: int
    style: query_decoder.Style
    transformer_options: Any
    remat: bool
    dtype: Any

    @property
    def hears(self) -> bool:
        """Whether queries come from sound."""
        return self.query_init != "learned"

    @nn.compact
    def __call__(self, frames, audio, present=None, train: bool = False, all_layers: bool = False) -> Output:
        """frames: (B, T, H, W, 3) float32 normalised, any H and W. audio: (B, S, 96, 64) or (B, S, 128), None where
        nothing is heard.

        S is T, or more where only a clip's first T frames are looked at. present: (B, S) float32, 0 for seconds that
        only fill up a clip, which are silent. all_layers: see `QueryTransformer`.
        """
        images = frames.reshape(-1, *frames.shape[2:])  # frame b * T + t
        levels, masks = self._look(images, train)
        heard = self._hear(audio, present) if self.hears else jnp.zeros((*frames.shape[:2], 0))
        queries = make_queries(self).copy(name="queries")(heard)[:, : frames.shape[1]]
        transformer = make_transformer(self, train, all_layers).copy(name="transformer")
        return Output(transformer(queries.reshape(-1, *queries.shape[2:]), levels, masks), tuple(levels))

    def _look(self, images, train):
        encoder = create_encoder(self.backbone, **dict(self.encoder_options), dtype=self.dtype).copy(name="encoder")
        learns = train and not self.freeze_encoder  # frozen, it drops nothing and its statistics stay

        again = self.remat and learns and not self.backbone.startswith("swin")  # Swin does so block by block
        maps = remat.call(encoder, images, again=again, train=learns)
        if self.freeze_encoder:
            maps = jax.lax.stop_gradient(maps)
        return make_pixel_decoder(self).copy(name="pixel_decoder")(maps, train)

    def _hear(self, audio, present):
        vggish = create_encoder("vggish", **dict(self.audio_options), dtype=self.dtype).copy(name="audio")
        return vggish_embedding(vggish, audio, present, self.train_audio)


def make_pixel_decoder(network: Network):
    return create_pixel_decoder(network.pixel_decoder, network.dim, network.dtype, **dict(network.pixel_options))


def make_queries(network: Network):
    return query_decoder.AudioQueries(network.query_init, network.num_queries, network.dim, network.dtype)


def make_transformer(network: Network, train: bool = False, all_layers: bool = False):
    options = {**dict(network.transformer_options), "all_layers": all_layers, "remat": network.remat and train}
    return query_decoder.QueryTransformer(network.classes, network.style._replace(train=train), **options)


def example_inputs(network: Network):
    """The smallest inputs that touch every parameter."""
    t = network.num_frames if network.query_init == "clip" else 1
    return jnp.zeros((1, 1, 32, 32, 3)), jnp.zeros((1, t, *EXAMPLE)) if network.hears else None


def torch_table(network: Network) -> torch_keys.Table:
    """The encoders' public keys, the image encoder's behind "encoder."; of the rest, which has no public code, the
    names of our parameters as PyTorch would have them."""
    prefix = "encoder."
    table = create_encoder(network.backbone, **dict(network.encoder_options)).torch_table()
    rules = torch_keys.prefixed(table.rules, prefix, ("encoder",))
    aliases = {rule.key: (prefix + rule.key,) for rule in table.rules}  # an encoder's own file has no prefix
    aliases |= {name: tuple(prefix + key for key in keys) for name, keys in table.aliases.items()}
    rules += _own_rules(_own_shapes(network))
    vggish = create_encoder("vggish", **dict(network.audio_options)).torch_table()
    ignored = table.ignored + vggish.ignored
    if network.hears:
        rules += torch_keys.prefixed(vggish.rules, "", ("audio",))
    else:  # the same list of files may be given
        ignored += tuple(rule.key for rule in vggish.rules)
    return torch_keys.Table(tuple(rules), aliases, ignored, table.namings)


def _own_shapes(network: Network) -> dict:
    """Parameters of what is no encoder, as shapes, without the time that tracing the encoders takes."""
    channels = create_encoder(network.backbone, **dict(network.encoder_options)).channels

    def make():
        key = jax.random.key(0)
        maps = [
            jnp.zeros((1, 32 // s, 32 // s, c), network.dtype) for s, c in zip((4, 8, 16, 32), channels, strict=True)
        ]
        (levels, masks), pixels = make_pixel_decoder(network).init_with_output(key, maps)
        sounds = jnp.zeros((1, network.num_frames if network.query_init == "clip" else 1, EMBEDDING))
        queries, made = make_queries(network).init_with_output(key, sounds)
        transformer = make_transformer(network).init(key, queries[:, 0], levels, masks)
        parts = {"pixel_decoder": pixels, "queries": made, "transformer": transformer}
        return {name: dict(variables["params"]) for name, variables in parts.items()}

    return jax.eval_shape(make)


def _own_rules(shapes) -> list[torch_keys.Rule]:
    """A rule for each parameter, called as its path, with PyTorch's "weight" for kernels and scales."""
    rules = []
    for path, x in jax.tree_util.tree_flatten_with_path(shapes)[0]:
        names = tuple(key.key for key in path)
        public = ".".join((*names[:-1], {"kernel": "weight", "scale": "weight"}.get(names[-1], names[-1])))
        layout = {4: "conv", 2: "linear"}.get(x.ndim, "same") if names[-1] == "kernel" else "same"
        rules.append(torch_keys.Rule(public, "params", names, layout))
    return rules
