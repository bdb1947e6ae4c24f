"""The engine on MLX: the only package that imports `mlx` or `mlx_lm`."""
