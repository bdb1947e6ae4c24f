"""Agents as a client sees them: what they ask, and what they are told."""

from attrs import define, field

from agentcache.domain.conversation import Conversation, Message
from agentcache.domain.errors import AgentCacheError
from agentcache.domain.events import Admitted, Delta, Ended, Event
from agentcache.domain.request import Identity, TurnRequest
from agentcache.service import Ask


@define(eq=False)
class Talk:
    """A client: an agent's name, if it has one, and the history that it sends every time."""

    name: str | None = None
    exclusive: bool = True
    system: str = ""
    tenant: str = "default"
    history: list[Message] = field(factory=list)

    def ask(self, text: str, **fields: object) -> Ask:
        """The next question, after all that was said; `fields` are those of the Ask."""
        self.history.append(Message("user", text))
        identity = Identity(self.name, self.tenant, self.exclusive and self.name is not None)
        head = [Message("system", self.system)] if self.system else []
        return Ask(identity, Conversation((*head, *self.history)), **fields)  # type: ignore[arg-type]

    def hear(self, answer: str) -> None:
        self.history.append(Message("assistant", answer))

    def take_back(self) -> None:
        """The last question was not answered."""
        self.history.pop()


@define(eq=False)
class Said:
    """One turn, and all that was told of it."""

    request: TurnRequest
    number: int = 0
    events: list[Event | AgentCacheError] = field(factory=list)

    @property
    def admitted(self) -> Admitted:
        (found,) = (one for one in self.events if isinstance(one, Admitted))
        return found

    @property
    def text(self) -> str:
        return "".join(one.text for one in self.events if isinstance(one, Delta))

    @property
    def over(self) -> bool:
        return bool(self.events) and isinstance(self.events[-1], Ended | AgentCacheError)

    @property
    def ended(self) -> Ended:
        assert isinstance(self.events[-1], Ended), self.events
        return self.events[-1]

    @property
    def error(self) -> AgentCacheError:
        assert isinstance(self.events[-1], AgentCacheError), self.events
        return self.events[-1]
