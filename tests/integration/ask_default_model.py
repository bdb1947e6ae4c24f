"""Asks a model folder for the capital of France, greedily, and prints the answer."""

import sys

from agentcache.adapters.mlx import blas


def ask(folder: str) -> str:
    """The model's answer."""
    blas.load()
    import mlx_lm  # after its BLAS

    model, tokenizer = mlx_lm.load(folder)[:2]
    question = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(question, add_generation_prompt=True)
    return mlx_lm.generate(model, tokenizer, prompt, max_tokens=24)


if __name__ == "__main__":
    sys.stdout.write(ask(sys.argv[1]))
