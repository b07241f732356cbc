"""How MLX sees attention: custom functions with gradients, mapping rules, the cache of validated calls."""
