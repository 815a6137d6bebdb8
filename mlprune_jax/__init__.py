"""MLPruning in JAX/Flax: BERT-family encoders made small and fast by learned structured pruning."""
