"""The papers' tables as experiments: one module per table, each a command. See experiments/README.md."""
