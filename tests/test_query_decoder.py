"""TransAVS's queries and attention layers: by hand, to the letter of the paper, in other orders, on other kernels."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from transavs_small import assert_same_gradients

from avs_jax.losses.query_set import dot_masks
from avs_jax.models import query_decoder
from avs_jax.models.initialise import initialise
from avs_jax.models.query_decoder import Style


def projected(rng, shape):
    return jnp.asarray(rng.normal(size=shape), jnp.float32)


def test_attention_as_defined_both_ways():
    r = np.random.default_rng(0)
    q, k, v = projected(r, (2, 5, 3, 4)), projected(r, (2, 7, 3, 4)), projected(r, (2, 7, 3, 4))
    mask = r.random((2, 5, 7)) < 0.5
    mask[..., 0] = True
    for allowed in (None, mask):
        scores = np.einsum("fnhc,fphc->fhnp", q, k) / 2
        scores = scores if allowed is None else np.where(allowed[:, None], scores, -np.inf)
        weights = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
        want = np.einsum("fhnp,fphc->fnhc", weights, v)
        for how in query_decoder.ATTENTIONS:
            np.testing.assert_allclose(query_decoder.attend(q, k, v, allowed, how), want, atol=1e-5)


def test_cudnns_kernel_is_asked_for_only_where_it_runs(monkeypatch):
    asked, device = [], types.SimpleNamespace(client=types.SimpleNamespace(platform_version="cuda 13"))

    def implementation(dtype=jnp.bfloat16, n=6, p=8, c=16, mask=None, capability="8.0", how="cudnn"):
        device.compute_capability = capability
        q, k = jnp.zeros((2, n, 1, c), dtype), jnp.zeros((2, p, 1, c), dtype)
        query_decoder.attend(q, k, k, mask, how)
        return asked.pop()

    assert not query_decoder._cudnn_runs(*[jnp.zeros((2, 6, 1, 16), jnp.bfloat16)] * 2)  # on a CPU
    monkeypatch.setattr(jax.nn, "dot_product_attention", lambda *_, **options: asked.append(options["implementation"]))
    monkeypatch.setattr(jax, "devices", lambda: [device])
    assert implementation() == implementation(jnp.float16, capability="9.0", c=128) == "cudnn"
    for no in (dict(dtype=jnp.float32), dict(c=12), dict(c=256), dict(n=5), dict(p=49), dict(capability="7.5"),
               dict(mask=jnp.ones((2, 6, 8), bool)), dict(how="dot_product")):  # fmt: skip
        assert implementation(**no) == "xla", no
    device.client.platform_version = "rocm 7"
    assert implementation(capability="gfx90a") == "xla"


def test_literal_layers_are_equations_3_and_6():
    r = np.random.default_rng(0)
    style = Style(heads=2, ffn=8, literal=True)
    x, positions = projected(r, (2, 5, 8)), projected(r, (5, 8))
    memory, places = projected(r, (2, 6, 8)), projected(r, (6, 8))

    def attention(p, queries, keys, values):
        q, k, v = queries @ p["q"]["kernel"], keys @ p["k"]["kernel"], values @ p["v"]["kernel"]
        scores = np.einsum("fnd,fpd->fnp", q, k) / np.sqrt(8)
        weights = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
        return np.einsum("fnp,fpd->fnd", weights, v)

    y, v = query_decoder.EncoderLayer(style).init_with_output(jax.random.key(0), x, positions)
    assert set(v["params"]) == {"self_attention"} and set(v["params"]["self_attention"]) == {"q", "k", "v"}
    p = v["params"]["self_attention"]
    np.testing.assert_allclose(y, x + attention(p, x + positions, x + positions, x), atol=1e-5)
    y, v = query_decoder.DecoderLayer(style).init_with_output(jax.random.key(0), x, positions, memory, places)
    p = v["params"].pop("cross_attention")
    assert not v["params"]
    np.testing.assert_allclose(y, x + attention(p, x + positions, memory + places, memory), atol=1e-5)


def transformer_inputs(n=6, d=8, seed=0):
    r = np.random.default_rng(seed)
    levels = [projected(r, (2, side, side + 1, d)) for side in (1, 2, 4)]
    return projected(r, (2, n, d)), levels, projected(r, (2, 8, 9, 12))


def transformer(**options):
    style = Style(heads=2, ffn=8, **{k: options.pop(k) for k in Style._fields if k in options})
    module = query_decoder.QueryTransformer(3, style, **{"encoder_layers": 1, "decoder_layers": 3, **options})
    return module, initialise(module, jax.random.key(0), *transformer_inputs())


TRANSFORMERS = {
    "default": {},
    "dot_product": {"attention": "dot_product", "masked_attention": True},
    "masked, mlp": {"masked_attention": True, "mask_mlp": True},
    "literal, paper": {"literal": True, "round_robin": "paper"},
    "no self-attention": {"decoder_self_attention": False, "encoder_layers": 0},
}


@pytest.mark.parametrize("options", TRANSFORMERS.values(), ids=TRANSFORMERS)
def test_permuted_queries_give_permuted_outputs(options):
    module, variables = transformer(**options)
    queries, levels, masks = transformer_inputs()
    order = np.random.default_rng(0).permutation(6)
    params = {**variables["params"], "query_positions": variables["params"]["query_positions"][order]}
    apply = jax.jit(module.apply)
    one, other = apply(variables, queries, levels, masks), apply({"params": params}, queries[:, order], levels, masks)
    assert one.class_logits.shape == (4, 2, 6, 3) and one.embeddings.shape == (4, 2, 6, 8)
    assert one.features.shape == (2, 8, 9, 8)
    for key in ("class_logits", "embeddings"):
        a, b = (np.asarray(getattr(x, key)) for x in (one, other))
        np.testing.assert_allclose(a[:, :, order], b, atol=1e-4)
        assert np.abs(a[1:] - a[:-1]).max((1, 2, 3)).min() > 1e-3  # every layer changes them
    assert np.abs(one.decoded - one.encoded).max() > 1e-3


def test_both_attentions_and_rematerialisation_agree():
    queries, levels, masks = transformer_inputs()
    _, variables = transformer(decoder_layers=2)

    def run(**options):
        module, _ = transformer(decoder_layers=2, **options)

        def total(params):
            out = module.apply({"params": params}, queries, levels, masks)
            return jnp.square(dot_masks(out.embeddings[-1], out.features)).sum() + jnp.square(out.class_logits).sum()

        return jax.jit(jax.value_and_grad(total))(variables["params"])

    value, grads = run()
    for options in ({"attention": "dot_product"}, {"remat": True}):
        other, found = run(**options)
        np.testing.assert_allclose(other, value, rtol=1e-5)
        assert_same_gradients(found, grads)
    modules = (transformer(decoder_layers=2, all_layers=each)[0] for each in (False, True))
    last, full = (module.apply(variables, queries, levels, masks) for module in modules)
    np.testing.assert_array_equal(last.class_logits, full.class_logits[-1:])


def test_masked_attention_looks_into_its_masks():
    r = np.random.default_rng(0)
    embeddings, features = projected(r, (2, 6, 8)), projected(r, (2, 8, 8, 8))
    embeddings = embeddings.at[0, 0].set(0).at[1, 1].set(-features[1].mean((0, 1)) * 1e3)
    logits = dot_masks(embeddings, features)
    small = np.asarray(logits).reshape(2, 6, 4, 2, 4, 2).mean((3, 5)).reshape(2, 6, 16)  # half size, half-pixel centres
    want = (small >= 0) | (small < 0).all(-1, keepdims=True)
    found = query_decoder._allowed(embeddings, query_decoder._shrunk(features, (4, 4)))
    np.testing.assert_array_equal(found, want)
    assert found[0, 0].all() and not want.all()
    blocked = query_decoder._allowed(-jnp.ones((1, 1, 2)), jnp.ones((1, 2, 2, 2)))
    assert blocked.all()


def test_order_of_levels_and_prior():
    assert [query_decoder.level_of(i, "coarse_first") for i in range(4)] == [0, 1, 2, 0]
    assert [query_decoder.level_of(i, "paper") for i in range(4)] == [1, 2, 0, 1]
    for classes in (2, 71):
        logits = jnp.zeros(classes).at[-1].set(query_decoder.prior_bias(0.01, classes))
        assert float(jax.nn.softmax(logits)[:-1].sum()) == pytest.approx(0.01, rel=1e-4)


@pytest.mark.parametrize("kind", ["frame", "clip", "shared"])
def test_queries_from_sound(kind):
    module = query_decoder.AudioQueries(kind, 6, 8)
    audio = projected(np.random.default_rng(0), (2, 4, 128))
    queries, variables = module.init_with_output(jax.random.key(0), audio)
    assert queries.shape == (2, 4, 6, 8)
    np.testing.assert_allclose(np.square(queries).mean(-1), 1, atol=1e-2)
    changed = module.apply(variables, audio.at[0, 1].add(1.0))
    moved = np.abs(changed - queries).max((2, 3)) > 1e-6
    assert moved.tolist() == [[kind == "clip", True, kind == "clip", kind == "clip"], [False] * 4]
    silent = module.apply(variables, jnp.zeros((1, 4, 128)))
    apart = np.abs(silent[0, 0][:, None] - silent[0, 0][None]).max(-1) + np.eye(6)
    assert apart.min() > 1e-3 if kind != "clip" else np.isfinite(silent).all()


def test_learned_queries_hear_nothing():
    module = query_decoder.AudioQueries("learned", 6, 8)
    queries, variables = module.init_with_output(jax.random.key(0), jnp.zeros((2, 4, 0)))
    assert queries.shape == (2, 4, 6, 8) and set(variables["params"]) == {"embedding", "norm"}
    np.testing.assert_allclose(np.square(queries).mean(-1), 1, atol=1e-2)
    np.testing.assert_array_equal(queries, np.broadcast_to(queries[0, 0], queries.shape))
    assert np.linalg.matrix_rank(queries[0, 0]) == 6
