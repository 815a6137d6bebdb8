"""The dense model: BERT in Flax linen, its task heads, and Hugging Face folders in and out."""
