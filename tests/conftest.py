"""Every test runs on the CPU, with compiled programs kept between runs."""

import os
import signal

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", os.path.join(os.path.expanduser("~"), ".cache", "avs_jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")

# Started in the background of a script, processes ignore Ctrl-C, and so do those that they start: not here.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

from absl import flags

# Grain's data processes read a flag, which absl refuses before flags are parsed; commands parse them in app.run.
flags.FLAGS.mark_as_parsed()
