"""Frozen, validated settings: the model's geometry, the run's settings, and how they are read."""
