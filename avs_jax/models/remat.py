"""Rematerialisation: what the backward pass computes again rather than keeps, decided in one place."""

import flax.linen as nn


def call(module: nn.Module, *inputs, again: bool, **options):
    """`module(*inputs, **options)`, the options being no arrays.

    With `again`, norms, activations and resizings inside it are computed again in the backward pass, and only the
    results of convolutions and products are kept: those cost time, the others memory. Not while initialising: see
    `avs_jax.models.initialise`.
    """

    def run(module, *inputs):
        return module(*inputs, **options)

    return (nn.remat(run, policy=_products) if again else run)(module, *inputs)


def _products(primitive, *_, **__):
    return primitive.name in ("conv_general_dilated", "dot_general")
