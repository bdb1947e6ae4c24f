"""How likely tokens were."""

from attrs import frozen

MOST_LOGPROBS = 20


@frozen
class Logprobs:
    """Natural logarithms of probabilities, as the model has them before anything is filtered out.

    `chosen` is that of the sampled token, `top` are the most likely tokens with theirs, the
    likeliest first.
    """

    chosen: float
    top: tuple[tuple[int, float], ...] = ()
