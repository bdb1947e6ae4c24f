"""Persistent KV-cache memory for LLM agents on MLX."""
