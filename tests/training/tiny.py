"""The smallest BERT that has everything, for tests that compile whole steps."""

from mlprune_jax.config.geometry import ModelConfig

CONFIG = ModelConfig(
    vocab_size=40,
    hidden_size=16,
    num_hidden_layers=1,
    num_attention_heads=2,
    intermediate_size=32,
    max_position_embeddings=16,
)
