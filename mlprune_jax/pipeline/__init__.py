"""The whole of MLPruning in one call: dense -> head/row -> shrink -> block -> final, resumable at any step."""

from mlprune_jax.pipeline.run import plan, resume, run

__all__ = ["plan", "resume", "run"]
