"""A `World` around a real model of MLX, and an oracle for what its turns may have to compute."""

from pathlib import Path
from typing import cast

from attrs import define, evolve, field

from agentcache.adapters.mlx import blas
from agentcache.assembly import Assembly
from agentcache.domain.request import Tier
from agentcache.domain.segment import Segment
from agentcache.domain.tokens import common_prefix
from agentcache.testing.driving import GREEDY
from tests.frail import FrailEngine
from tests.talks import Said, Talk
from tests.world import World

blas.load()

from agentcache.adapters.mlx import tokenizer  # noqa: E402
from agentcache.adapters.mlx.engine import MLXEngine  # noqa: E402


@define(eq=False)
class ShapeWorld(World):
    """The model in `folder`, with its own tokenizer; loaded anew whenever the world is opened."""

    folder: Path = field(kw_only=True)

    def assembly(self) -> Assembly:
        return evolve(super().assembly(), load_tokenizer=lambda: tokenizer.load(self.folder))

    def _load_engine(self) -> FrailEngine:
        made = MLXEngine.load(self.folder, b"tiny", self.folder.name)
        self.engine = cast(FrailEngine, made)
        return self.engine

    def turn(self, talk: Talk, text: str, tokens: int = 6) -> tuple[Said, int, int]:
        """A whole turn; how many tokens of the prompt were forwarded, and how many had to be."""
        said = self.begin(talk.ask(text, max_tokens=tokens, sampling=GREEDY))
        prompt = list(said.request.prompt.tokens)
        due = len(prompt) - self.restorable(prompt)
        before = self.telemetry.tokens_forwarded
        self.settle()
        talk.hear(said.text)
        forwarded = self.telemetry.tokens_forwarded - before
        assert self.engine.held_bytes() <= self.granted()
        return said, forwarded - _decoded(said), due

    def granted(self) -> int:
        """Bytes for which live sequences have been granted blocks."""
        spec, hot = self.engine.card.spec, self.conductor.planner.hot
        return sum(spec.live_bytes(sequence.capacity) for sequence in hot)

    def restorable(self, prompt: list[int]) -> int:
        """The largest place to continue, by the rule of the design, looking at every segment."""
        best = 0
        for segment in {*self.segments(Tier.WARM), *self.segments(Tier.COLD)}:
            ids = self._tokens_up_to(segment)
            agreed = min(common_prefix(ids, 0, prompt, 0), len(prompt) - 1)
            if self.engine.card.spec.interior_restorable:
                best = max(best, agreed)
            elif agreed == len(ids):
                best = max(best, len(ids))
        return best

    def _tokens_up_to(self, segment: Segment) -> list[int]:
        lineage = self.conductor.keeper.lineage
        if segment.parent is None:
            return list(segment.ids)
        return self._tokens_up_to(lineage[segment.parent])[: segment.start] + list(segment.ids)


def _decoded(said: Said) -> int:
    """Steps of one token: the first token comes of the prompt itself."""
    return max(0, said.ended.completion - 1)
