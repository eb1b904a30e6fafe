"""What pictures are drawn with: see `avs_jax.pictures`."""
