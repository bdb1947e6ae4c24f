"""Agents with a memory in a plain program: run it twice, and they remember the first time.

python examples/library_sync.py [--home FOLDER] [--model NAME]
"""

import argparse

import agentcache


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--home", default="~/.agentcache")
    options.add_argument("--model", default="smollm2-135m")
    chosen = options.parse_args()

    with agentcache.open(model=chosen.model, home=chosen.home) as cache:
        agent = cache.agent("librarian", system="You know every book, and answer in one sentence.")
        print(f"{len(agent.history)} messages are remembered")

        answer = agent.say("Which book should I read first?", max_tokens=40, temperature=0.7)
        print(answer.text)
        print(
            f"{answer.cache.cached_tokens} of {answer.usage.prompt_tokens} tokens were remembered"
        )

        with agent.stream("And after that one?", max_tokens=40) as stream:
            for piece in stream:
                print(piece, end="", flush=True)
        print(f"\nfrom the {stream.answer.cache.tier.value} tier")

        other = agent.fork(f"librarian's other mind {len(cache.agents())}")
        print(other.say("I have read both.", max_tokens=20).text)
        other.rewind(1)  # it never heard that
        print([f"{view.name}: {view.turns} turns" for view in cache.agents()])


if __name__ == "__main__":
    main()
