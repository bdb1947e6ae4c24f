"""What a running turn tells whoever asked for it, in this order: Admitted, Delta..., Ended."""

from attrs import frozen

from agentcache.domain.logprobs import Logprobs
from agentcache.domain.request import Finish, Miss, Tier


@frozen
class Admitted:
    """The turn has its place, and what could be restored is restored: the first byte may be sent.

    `cached` of the `prompt` tokens are served from `tier`; `miss` says why not more. `agent` is the
    exclusive agent that the turn is of: a fork's own name where it was busy.
    """

    prompt: int
    cached: int
    tier: Tier
    miss: Miss
    agent: str | None = None


@frozen
class Delta:
    """More text. `tokens` were sampled since the last delta (text may lag behind them).

    `likely` has those of them that are text, with their log-probabilities, if these were asked for.
    """

    text: str
    tokens: int
    likely: tuple[tuple[int, Logprobs], ...] = ()


@frozen
class Ended:
    """The turn is over, and kept as durably as was promised.

    `completion` counts the sampled tokens, an end token among them. `stop` is the stop sequence
    that was hit, which is not part of the text. `problem` says what went wrong if it FAILED.
    """

    finish: Finish
    prompt: int
    cached: int
    completion: int
    stop: str | None = None
    problem: str | None = None

    @property
    def cut(self) -> bool:
        """Whether it was not the model that ended the answer."""
        return self.finish is not Finish.STOP or self.stop is not None


Event = Admitted | Delta | Ended
