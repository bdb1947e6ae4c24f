"""What `store` and `prompt_cache_key` of a request of OpenAI's dialects ask to be kept."""

from typing import TypedDict


class Kept(TypedDict):
    """The fields of an Ask that say so."""

    store: bool
    findable: bool


def kept(store: bool | None, prompt_cache_key: str | None) -> Kept:
    """`store` false is about the answer, which cannot be looked up; a key asks for the cache."""
    findable = store is not False
    return Kept(store=findable or bool(prompt_cache_key), findable=findable)
