"""Several agents at once from one event loop; they share what they have in common.

python examples/library_async.py [--home FOLDER] [--model NAME]
"""

import argparse
import asyncio

import agentcache

SYSTEM = "You are one of several reviewers. You look at one thing only, and answer in one sentence."


async def review(cache: agentcache.AsyncAgentCache, subject: str) -> str:
    agent = cache.agent(f"reviewer of {subject}", system=SYSTEM)
    async with agent.stream(f"What matters about {subject}?", max_tokens=24) as stream:
        pieces = [piece async for piece in stream]
    remembered = f"{stream.answer.cache.cached_tokens} tokens remembered"
    return f"{subject} ({remembered}): {''.join(pieces)}"


async def main(home: str, model: str) -> None:
    async with agentcache.open_async(model=model, home=home) as cache:
        await cache.agent("reviewers", system=SYSTEM).prefill()  # computed once, for all of them
        subjects = ("names", "tests", "errors")
        for line in await asyncio.gather(*(review(cache, subject) for subject in subjects)):
            print(line)
        try:
            async with asyncio.timeout(0.2):  # an answer that takes too long is cancelled
                await cache.agent("slow", system=SYSTEM).say("Tell me everything.")
        except TimeoutError:
            print("cancelled")


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--home", default="~/.agentcache")
    options.add_argument("--model", default="smollm2-135m")
    asyncio.run(main(**vars(options.parse_args())))
