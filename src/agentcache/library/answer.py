"""What an agent is asked for beyond the text, and what it answers."""

from collections.abc import Mapping, Sequence
from typing import TypedDict, get_type_hints

from attrs import field, fields_dict, frozen

from agentcache.domain.conversation import Conversation
from agentcache.domain.errors import InvalidRequest
from agentcache.domain.events import Admitted, Ended
from agentcache.domain.guide import Grammar
from agentcache.domain.request import Finish, Identity, Miss, Sampling, Tier
from agentcache.service import Ask


class Options(TypedDict, total=False):
    """How to answer; what is left out has the default of `Sampling`, or of `Ask`.

    `logit_bias` is added to the logits of these token ids. `max_tokens` is the longest answer,
    None: as long as there is room. `stop` are texts that end it. With `store` false the agent does
    not remember the turn. `timeout` is how many seconds it may wait for a place. Higher `priority`
    goes first. `grammar` is what the answer is kept to.
    """

    temperature: float
    top_p: float
    top_k: int
    min_p: float
    seed: int | None
    presence_penalty: float
    frequency_penalty: float
    logit_bias: Mapping[int, float]
    max_tokens: int | None
    stop: str | Sequence[str]
    store: bool
    timeout: float | None
    priority: int
    grammar: Grammar | None


@frozen
class TokenUsage:
    """How many tokens a turn read and said."""

    prompt_tokens: int
    completion_tokens: int

    @property
    def total_tokens(self) -> int:
        """Both together."""
        return self.prompt_tokens + self.completion_tokens


@frozen
class CacheUse:
    """What memory was worth: `cached_tokens` of the prompt were not computed again.

    `tier` is where their rows were found, `miss` why there were not more.
    """

    cached_tokens: int
    tier: Tier
    miss: Miss


@frozen(str=False)
class Answer:
    """What was said, and what it took. As a string it is its text.

    `finish` is STOP or LENGTH; `stop` is the stop sequence that ended it, not part of the text.
    """

    text: str
    usage: TokenUsage
    cache: CacheUse
    finish: Finish
    stop: str | None = field(default=None)

    @classmethod
    def of(cls, text: str, admitted: Admitted, ended: Ended) -> "Answer":
        """The answer of a turn that is over."""
        usage = TokenUsage(admitted.prompt, ended.completion)
        cache = CacheUse(admitted.cached, admitted.tier, admitted.miss)
        return cls(text, usage, cache, ended.finish, ended.stop)

    def __str__(self) -> str:
        return self.text


def ask_of(identity: Identity, conversation: Conversation, options: Options) -> Ask:
    """The request for the service. Raises InvalidRequest for values, TypeError for names."""
    given = dict(options)
    if unknown := given.keys() - get_type_hints(Options).keys():
        known = ", ".join(get_type_hints(Options))
        raise TypeError(f"there is no option {', '.join(sorted(unknown))}; there are: {known}")
    if "stop" in given:
        stop = options["stop"]
        given["stop"] = (stop,) if isinstance(stop, str) else tuple(stop)
    if "logit_bias" in given:
        given["logit_bias"] = tuple(options["logit_bias"].items())
    chosen = {name: given.pop(name) for name in fields_dict(Sampling) if name in given}
    try:
        return Ask(identity, conversation, Sampling(**chosen), **given)  # type: ignore[arg-type]
    except TypeError as error:
        raise InvalidRequest(f"an option has a value of the wrong type: {error}") from error
