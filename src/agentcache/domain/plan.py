"""Plans: frozen values that say what shall be done next, and what came of it."""

from attrs import field, frozen

from agentcache.domain.request import Sampling
from agentcache.domain.tokens import Tokens


@frozen
class PrefillChunk:
    """Run `ids` as the positions from `start` on, in one forward of this sequence alone.

    With `sampling`, this is the last chunk of the prompt: sample the first token after it, and
    every later one, with these parameters.
    """

    sequence: int
    start: int
    ids: "Tokens[int]" = field(eq=False)
    sampling: Sampling | None = None


@frozen
class StepPlan:
    """One step of the engine: prefill chunks one after another, then one ragged decode of `decode`.

    Each sequence in `decode` runs the token that was last sampled for it and samples the next.
    """

    number: int
    prefill: tuple[PrefillChunk, ...] = ()
    decode: tuple[int, ...] = ()


@frozen
class Sampled:
    """The token that was sampled for `sequence`."""

    sequence: int
    token: int


@frozen
class SequenceFailed:
    """The engine could not go on with `sequence`; its rows before this step are as they were."""

    sequence: int
    problem: str


@frozen
class StepResult:
    """What came of the step `number`. `forwarded` is how many tokens were passed to the model."""

    number: int
    sampled: tuple[Sampled, ...] = ()
    failed: tuple[SequenceFailed, ...] = ()
    forwarded: int = 0
