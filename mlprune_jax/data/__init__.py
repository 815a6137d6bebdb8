"""Text in, batches out: GLUE, custom and generated tasks, tokenisation, and the hub downloads."""
