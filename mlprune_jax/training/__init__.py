"""Training: losses, optimiser, state, the jitted step, metrics, checkpoints and the loop."""
