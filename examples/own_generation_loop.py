"""A generation loop of one's own, on mlx-lm, whose prompt caches survive the process.

    python examples/own_generation_loop.py MODEL_FOLDER HOME "What is a KV cache?"

Run it twice: the second time nearly all of the prompt comes from the home.
"""

import sys

from agentcache.adapters.mlx import blas

blas.load()  # Linux without a GPU: a fast BLAS has to be there before MLX is

from mlx_lm import load, stream_generate  # noqa: E402

import agentcache  # noqa: E402


def main(folder: str, home: str, question: str) -> None:
    """Answer `question`, and say how much of the prompt was not computed again."""
    model, tokenizer = load(folder)
    messages = [{"role": "user", "content": question}]
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True)
    with agentcache.prompt_caches(model, home=home) as caches:
        found = caches.fetch(ids)
        said = []
        for one in stream_generate(
            model, tokenizer, found.rest, max_tokens=32, prompt_cache=found.cache
        ):
            said.append(one.token)
            print(one.text, end="", flush=True)
        kept = caches.commit([*ids, *said], found.cache)
    print(f"\n{found.restored} of {len(ids)} prompt tokens restored, {kept.new} new rows kept")


if __name__ == "__main__":
    main(*sys.argv[1:])
