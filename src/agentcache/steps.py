"""The steps under way: submitted to the engine, collected in order, each with the time it took."""

import logging
from collections import deque

from attrs import define, field

from agentcache.domain.errors import AgentCacheError
from agentcache.domain.plan import SequenceFailed, StepPlan, StepResult
from agentcache.ports.clock import Clock
from agentcache.ports.engine import Engine
from agentcache.ports.telemetry import Telemetry

log = logging.getLogger(__name__)


_Step = tuple[StepPlan, float, StepResult | None]  # when it was submitted; what came if that failed


@define(eq=False)
class Steps:
    """Runs steps; whatever the engine raises fails the sequences of that step, and no others.

    A step takes from when it was submitted, or the one before it was collected, to when it is
    collected itself. Those that are `flying` are not collected yet, the oldest first.
    """

    engine: Engine
    clock: Clock
    telemetry: Telemetry
    flying: "deque[_Step]" = field(factory=deque, init=False)
    _collected: float = field(default=0.0, init=False)

    def submit(self, plan: StepPlan) -> None:
        """Start a step."""
        now = self.clock.monotonic()
        try:
            self.engine.submit(plan)
        except Exception as error:
            log.exception("step %d could not be submitted", plan.number)
            self.flying.append((plan, now, _all_failed(plan, error)))  # its turn comes, too
        else:
            self.flying.append((plan, now, None))

    def collect(self) -> tuple[StepResult, float]:
        """Wait for the oldest step: what came of it, and the seconds it took."""
        plan, submitted, failed = self.flying.popleft()
        try:
            result = failed or self.engine.collect()
        except Exception as error:
            log.exception("step %d failed", plan.number)
            result = _all_failed(plan, error)
        began, self._collected = max(submitted, self._collected), self.clock.monotonic()
        seconds = self._collected - began
        decoded = min(result.forwarded, len(plan.decode))
        self.telemetry.forwarded(result.forwarded, decoded, seconds)
        return result, seconds


def said_of(error: Exception) -> str:
    """What a turn is told of an error that ended it."""
    return str(error) if isinstance(error, AgentCacheError) else type(error).__name__


def _all_failed(step: StepPlan, error: Exception) -> StepResult:
    sequences = [chunk.sequence for chunk in step.prefill] + list(step.decode)
    failed = tuple(SequenceFailed(one, said_of(error)) for one in dict.fromkeys(sequences))
    return StepResult(step.number, failed=failed)
