"""Running a trained method on videos, folders of frames and clips of a data set: see `avs_jax.predict`."""
