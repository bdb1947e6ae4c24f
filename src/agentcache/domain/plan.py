"""Plans: frozen values that say what shall be done next, and what came of it."""

from attrs import field, frozen

from agentcache.domain.guide import Guide
from agentcache.domain.logprobs import Logprobs
from agentcache.domain.path import Step
from agentcache.domain.request import Sampling
from agentcache.domain.tokens import Tokens, tokens


@frozen
class Again:
    """Tokens whose rows are there, and are run again: `ids` are the last ones before a chunk.

    Of each position it is `asked` how likely some tokens are after it.
    """

    ids: "Tokens[int]" = field(eq=False)
    asked: tuple[tuple[int, ...], ...] = ()


@frozen
class PrefillChunk:
    """Run `ids` as the positions from `start` on, in one forward of this sequence alone.

    With `sampling`, this is the last chunk of the prompt: sample the first token after it, and
    every later one, with these parameters, and kept to what `guide` allows. The last tokens of the
    prompt, `said`, were sampled so before. With `again`, the tokens before `start` run in the same
    forward; their rows stay as they are. A `traced` sequence remembers what `likeliest` tells.
    """

    sequence: int
    start: int
    ids: "Tokens[int]" = field(eq=False)
    sampling: Sampling | None = None
    guide: Guide | None = field(default=None, eq=False)
    said: "Tokens[int]" = field(factory=tokens, eq=False)
    again: Again | None = None
    traced: bool = False


@frozen
class StepPlan:
    """One step of the engine: prefill chunks one after another, then one ragged decode of `decode`.

    Each sequence in `decode` runs the token that was last sampled for it and samples the next.
    """

    number: int
    prefill: tuple[PrefillChunk, ...] = ()
    decode: tuple[int, ...] = ()

    @property
    def rows(self) -> dict[int, int]:
        """How many rows the step adds to each of its sequences."""
        chunks = {chunk.sequence: len(chunk.ids) for chunk in self.prefill}
        return chunks | dict.fromkeys(self.decode, 1)


@frozen
class Sampled:
    """The token that was sampled for `sequence`; `logprobs` if its sampling asks for them."""

    sequence: int
    token: int
    logprobs: Logprobs | None = None


@frozen
class SequenceFailed:
    """The engine could not go on with `sequence`; its rows before this step are as they were.

    It is `stuck` if the model could, but its guide came to a dead end.
    """

    sequence: int
    problem: str
    stuck: bool = False


Found = tuple[tuple[float, ...], ...]


@frozen
class Retold:
    """The log-probabilities that were asked for by the `again` of a chunk of `sequence`."""

    sequence: int
    found: Found


@frozen
class StepResult:
    """What came of the step `number`. `forwarded` is how many tokens were passed to the model."""

    number: int
    sampled: tuple[Sampled, ...] = ()
    failed: tuple[SequenceFailed, ...] = ()
    forwarded: int = 0
    retold: tuple[Retold, ...] = ()


@frozen
class Grow:
    """Give the sequence of `turn` room for `capacity` tokens in all. It goes on as it is."""

    turn: int
    sequence: int
    capacity: int


@frozen
class Start:
    """Make sequence `sequence` with room for `capacity` tokens, and restore its first rows.

    `steps` hold the `restore` rows, and are held themselves until the planner is told what came of
    it (`fetched`, `fetch_failed`). Where `restore` is 0 nobody needs to be told.
    """

    turn: int
    sequence: int
    capacity: int
    steps: tuple[Step, ...] = ()
    restore: int = 0


@frozen
class Resize:
    """Make the sequence of `turn` hold its first `length` rows only, with room for `capacity`.

    What was sampled for it is forgotten too.
    """

    turn: int
    sequence: int
    length: int
    capacity: int


@frozen
class Park:
    """Keep the rows of all `ids` of a sequence, as far as they are not kept yet.

    New segments shall end at each of `cuts`. With `turn`, this is the end of that turn.
    """

    sequence: int
    root: bytes
    ids: "Tokens[int]" = field(eq=False)
    cuts: tuple[int, ...] = ()
    turn: int | None = None


@frozen
class Plan:
    """All that shall be done before the next plan, in the order of these fields.

    What may fail for one turn (`grow`, `start`, `resize`) never comes with a step: a turn for which
    it failed is in no step.
    """

    park: tuple[Park, ...] = ()
    drop: tuple[int, ...] = ()
    grow: tuple[Grow, ...] = ()
    start: tuple[Start, ...] = ()
    resize: tuple[Resize, ...] = ()
    step: StepPlan | None = None

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do."""
        prepared = self.park or self.drop or self.grow or self.start or self.resize
        return not (prepared or self.step)
