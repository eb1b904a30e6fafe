"""What `python -m avs_jax.explain` is made of."""
