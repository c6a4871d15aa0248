"""Take a model anywhere: a Hugging Face folder, GGUF, MLX; each checked by the program that will read it."""
