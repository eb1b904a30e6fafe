"""Data sets on disk, made from raw material: one module per command of `python -m avs_jax.prepare`.

Nothing here imports jax: the work is done in processes that would each start a backend.
"""
