"""``python -m mlprune_jax``: the command line, for where its script is not on the path."""

from mlprune_jax.cli import main

main()
