"""The audio-visual matching losses against the public code's numbers, and what those do not show."""

import goldens
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from avs_jax.errors import InputError
from avs_jax.losses import avm
from avs_jax.losses.bce import masked_bce

GOLDEN = goldens.load("tpavi_losses")
B, T, H, W, C, SEED = (GOLDEN[k] for k in ("B", "T", "H", "W", "C", "seed"))
CASES = {
    **{
        f"avm_{kind}_{measure}_{'norm' if normalise else 'nonorm'}": (
            loss,
            {"measure": measure, "normalise": normalise},
        )
        for kind, loss in (("av", avm.avm_av), ("vv", avm.avm_vv))
        for measure in ("kl", "euclid")
        for normalise in (False, True)
    },
    "avm_av_kl_threshold_nonorm": (avm.avm_av, {"threshold": True}),
    "avm_av_kl_threshold_norm": (avm.avm_av, {"threshold": True, "normalise": True}),
    "avm_av_kl_nonorm_stage0_only": (avm.avm_av, {"stages": (0,)}),
    "avm_av_kl_nonorm_maxpool": (avm.avm_av, {"pooling": "max"}),
    "s4_cosine_sa_loss": (avm.avm_cosine, {}),
}


@pytest.fixture(scope="module")
def inputs():
    """(logits (F, H, W, 1), two maps (F, h, w, C), two audio features (B, T, C))."""
    logits = goldens.nhwc(2 * goldens.image((B * T, 1, H, W), SEED))
    visual = [
        goldens.nhwc(np.maximum(goldens.image((B * T, C, H // s, W // s), SEED + 10 + i), 0))
        for i, s in enumerate((2, 4))
    ]
    return logits, visual, [goldens.image((B, T, C), SEED + 20 + i) for i in range(2)]


def gradients(loss, inputs):
    logits, visual, audio = jax.grad(loss, (0, 1, 2))(*inputs)
    return {"logits": logits, **{f"vmap{i}": v for i, v in enumerate(visual)},
            **{f"afea{i}": a for i, a in enumerate(audio)}}  # fmt: skip


def check_gradients(name, loss, inputs):
    checked = 0
    for part, got in gradients(loss, inputs).items():
        want = GOLDEN.get(f"{name}:d_{part}", np.zeros(0))
        if want.size:
            got = got if part.startswith("afea") else np.moveaxis(got, -1, 1)
            assert goldens.error(got, want) < 1e-5, part
            checked += 1
        else:  # no path in the public code
            assert not np.any(got), part
    return checked


@pytest.mark.parametrize("name", CASES)
def test_matches_the_public_code(name, inputs):
    loss, options = CASES[name]

    def run(logits, visual, audio):
        return loss(logits, visual, audio, **options)

    assert abs(float(run(*inputs)) / GOLDEN[name] - 1) < 2e-6
    if f"{name}:d_logits" in GOLDEN:
        assert check_gradients(name, run, inputs) >= 3


def test_double_precision(inputs):
    """In float64 only the rounding of the stored number is left."""
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), inputs)
        for name, (loss, options) in CASES.items():
            got = loss(*wide, **options)
            assert got.dtype == jnp.float64 and abs(float(got) / GOLDEN[name] - 1) < 1e-7, name


def test_total_of_the_published_run(inputs):
    truth = goldens.nhwc(goldens.image((B * T, 1, H, W), SEED + 1) > 0.3).astype(np.float32)
    truth[-1] = 0

    def total(logits, visual, audio):
        return masked_bce(logits, truth, np.ones_like(truth)) + 0.5 * avm.avm_av(logits, visual, audio)

    assert abs(float(total(*inputs)) / GOLDEN["total_ms3_script"] - 1) < 2e-6
    assert check_gradients("total_ms3_script", total, inputs) == 5


def test_partners(inputs):
    audio = jnp.asarray(inputs[2][0]).reshape(-1, C)
    np.testing.assert_array_equal(avm.partners(audio), GOLDEN["avm_vv_partner_stage0_nonorm"])
    np.testing.assert_array_equal(avm.partners(avm.unit(audio)), GOLDEN["avm_vv_partner_stage0_norm"])
    np.testing.assert_array_equal(avm.partners(audio * 100), np.arange(B * T))  # all farther than 10: alone
    present = np.arange(B * T) != 9
    assert 9 in avm.partners(audio)[present]
    assert 9 not in avm.partners(audio, present)[present]


@pytest.mark.parametrize("loss", [avm.avm_av, avm.avm_vv, avm.avm_cosine])
def test_absent_frames_count_for_nothing(loss, inputs):
    logits, visual, audio = (jax.tree.map(lambda x: x.reshape(B, T, *x.shape[1 + (x.shape[0] == B) :]), part)
                             for part in inputs)  # fmt: skip
    present = np.array([[True] * T, [False] * T])
    first = jax.tree.map(lambda x: x[:1], (logits, visual, audio))
    want = loss(*first)
    assert np.isclose(loss(logits, visual, audio, present=present), want, rtol=1e-6)
    blank = jax.tree.map(lambda x: np.where(present[(...,) + (None,) * (x.ndim - 2)], x, 0), (logits, visual, audio))
    run = jax.value_and_grad(lambda i: loss(*i, present=present))
    value, grads = run(blank)
    assert np.isclose(value, want, rtol=1e-6)
    assert all(np.isfinite(g).all() and not np.any(g[1]) for g in jax.tree.leaves(grads))


def test_frames_are_summed_or_averaged(inputs):
    assert np.isclose(avm.avm_av(*inputs, reduction="mean") * B * T, avm.avm_av(*inputs), rtol=1e-6)
    assert np.isclose(avm.avm_vv(*inputs, reduction="mean") * B * T, avm.avm_vv(*inputs), rtol=1e-6)


def test_classes_are_masked_by_the_best_of_them(inputs):
    """AVSS: where the best class is not background, averaged over each cell; a weighted mean over frames."""
    rng = np.random.default_rng(0)
    logits, flags = rng.normal(size=(B * T, H, W, 3)).astype(np.float32), np.arange(B * T) % 3 > 0
    visual, audio = inputs[1], inputs[2]
    mask = (logits.argmax(-1) != 0).reshape(B * T, H // 2, 2, W // 2, 2).mean((2, 4))
    seen = (mask[..., None] * visual[0]).mean((1, 2)).astype(np.float64)
    log_q = seen - np.log(np.exp(seen).sum(-1, keepdims=True))
    heard = audio[0].reshape(-1, C).astype(np.float64)
    log_p = heard - np.log(np.exp(heard).sum(-1, keepdims=True))
    want = (np.exp(log_p) * (log_p - log_q)).sum(-1)[flags].mean()
    got = avm.avm_av(logits, visual, audio, stages=[0], present=flags)
    assert np.isclose(got, want, rtol=1e-5)
    assert not np.any(jax.grad(lambda x: avm.avm_av(x, visual, audio))(logits))


def test_kl_keeps_its_digits_where_distributions_are_alike():
    rng = np.random.default_rng(1)
    p = rng.normal(size=(20, 256))
    q = p + 0.01 * rng.normal(size=p.shape)
    log_p, log_q = (x - np.log(np.exp(x).sum(-1, keepdims=True)) for x in (p, q))
    want = (np.exp(log_p) * (log_p - log_q)).sum(-1)  # float64; in float32 this is off by a thousandth and more
    got = avm._kl(jax.nn.log_softmax(jnp.float32(p)), jax.nn.log_softmax(jnp.float32(q)))
    np.testing.assert_allclose(got, want, rtol=1e-3, atol=2e-5 * want.max())


def test_extreme_inputs_give_finite_values_and_gradients(inputs):
    logits, visual, audio = inputs
    for scale in (0.0, 1e3):  # nothing seen and heard; softmaxes with one entry
        extreme = (logits * scale, [v * scale for v in visual], [a * scale for a in audio])
        for loss, options in CASES.values():
            for x in jax.tree.leaves(jax.value_and_grad(lambda i, f=loss, o=options: f(*i, **o))(extreme)):
                assert np.isfinite(x).all()


def test_sizes_that_do_not_divide_and_half_precision(inputs):
    logits, visual, audio = inputs
    odd = [v[:, :5, :7] for v in visual]
    assert np.isfinite(avm.avm_av(logits, [odd[0], visual[1]], audio))
    assert avm.avm_av(logits, [odd[0]], audio[:1], pooling="max") != avm.avm_av(logits, [odd[0]], audio[:1])
    half = [jnp.asarray(v, jnp.bfloat16) for v in visual]
    got, want = avm.avm_av(logits, half, audio), avm.avm_av(*inputs)
    assert got.dtype == jnp.float32
    assert np.isclose(got, want, rtol=1e-3)


@pytest.mark.parametrize(
    "options, says",
    [
        ({"measure": "cosine"}, "'measure'.*kl"),
        ({"pooling": "mean"}, "'pooling'.*avg"),
        ({"reduction": "none"}, "'reduction'.*sum"),
        ({"stages": (0, 2)}, "fused stages"),
        ({"stages": ()}, "fused stages"),
    ],
)
def test_bad_options_are_named(options, says, inputs):
    with pytest.raises(InputError, match=says):
        avm.avm_av(*inputs, **options)


def test_stages_without_audio_are_left_out_or_refused(inputs):
    logits, visual, audio = inputs
    assert avm.avm_av(logits, visual, [None, audio[1]]) == avm.avm_av(logits, visual, audio, stages=[1])
    with pytest.raises(InputError, match="fused stages"):
        avm.avm_vv(logits, visual, [None, audio[1]], stages=[0])
