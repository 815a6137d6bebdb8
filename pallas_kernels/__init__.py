"""Block-sparse formats and kernels, usable without ``mlprune_jax``."""
