"""From what a user asks to a turn that can be queued: recognised, rendered and tokenised."""

from collections.abc import Sequence
from uuid import uuid4

from attrs import evolve, field, frozen

from agentcache.conductor import Conductor
from agentcache.domain.answer import PLAIN, Reading, Tools
from agentcache.domain.conversation import Conversation, Message
from agentcache.domain.echo import as_said, spoken
from agentcache.domain.errors import InvalidRequest, Unavailable
from agentcache.domain.guide import Grammar, Guide
from agentcache.domain.registry import SessionRegistry
from agentcache.domain.request import (
    Identity,
    Miss,
    Prompt,
    Sampling,
    TurnRequest,
    WhenBusy,
)
from agentcache.domain.session import Session, SessionKey
from agentcache.domain.spans import RenderedSpan
from agentcache.domain.structure import CalledTools, Structure, grammar
from agentcache.domain.tools import tools_json
from agentcache.rendering import miss_of
from agentcache.succession import NAMELESS, check_name, continues


@frozen
class Ask:
    """One request: who asks, the conversation so far, and how to answer.

    `timeout` is how many seconds it may wait for a place; None: as long as the service allows. What
    `max_tokens` 0, `priority` and `when_busy` mean is said in `TurnRequest`. The answer is kept to
    `structure`; unless it `calls`, what looks like a tool call is text, and unless `several`, the
    first call is the end of it. No other model than `model` answers, if one is named. Rows are kept
    with `codec`; None: with the one that the conversation has, if it is new the default one. Unless
    it is `findable`, an answer that is stored cannot be looked up by its turn; if it is, `note` is
    told with it. Ids of its tool calls begin with `calls_begin`.
    """

    identity: Identity
    conversation: Conversation
    sampling: Sampling = field(factory=Sampling)
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    store: bool = True
    findable: bool = True
    timeout: float | None = None
    priority: int = 0
    when_busy: WhenBusy = "wait"
    calls: bool = True
    several: bool = True
    structure: Structure | Grammar | None = None
    model: str | None = None
    codec: str | None = None
    note: str | None = field(default=None, eq=False, repr=False)
    calls_begin: str = "call_"

    @property
    def tools(self) -> Tools:
        """The tools that the answer may call."""
        return self.conversation.tools if self.calls else ()


def prepared(ask: Ask, conductor: Conductor, deadline: float, now: float) -> TurnRequest:
    """The turn that `ask` asks for, which waits for a place until `deadline` (monotonic seconds).

    `now` is in wall-clock seconds.
    For any thread. Raises InvalidRequest, Unavailable when another model is served meanwhile.
    """
    identity = ask.identity
    if ask.model not in (None, conductor.engine.card.name):
        raise Unavailable("swapping")  # it was served when it was asked for
    if identity.exclusive and identity.name is not None:
        check_name(identity.name)
    chosen, turn = _chosen(ask, conductor), uuid4().hex
    roots = conductor.roots.of(identity.tenant)
    messages, prompt, known = _recalled(ask, conductor, chosen, roots)
    root = chosen or (known.key.root if known else conductor.roots.root(identity.tenant))
    conductor.roots.codec(root)
    form = PLAIN if prompt.raw else conductor.tokenizer.answer_format()
    opened = form.opens(prompt.generation_prompt())
    forced = isinstance(ask.structure, CalledTools)
    single, begin = not ask.several, ask.calls_begin
    reading = Reading(form, ask.tools, turn, opened, single, forced, begin)
    return TurnRequest(
        id=turn,
        identity=identity,
        root=root,
        prompt=prompt,
        sampling=_within(ask.sampling, conductor.engine.card.vocabulary),
        guide=_guide(conductor, reading, ask.structure),
        reading=reading,
        max_tokens=ask.max_tokens,
        stop=ask.stop,
        session=_heir(identity, root, known),
        cursor=known.cursor if known and known.key.root == root else None,
        trace=known.trace if known and known.key.root == root else None,
        expected=_expected(prompt, known),
        deadline=deadline,
        asked=now,
        store=ask.store,
        findable=ask.findable,
        priority=ask.priority,
        when_busy=ask.when_busy,
        messages=messages,
        tools=tools_json(ask.conversation.tools),
        note=ask.note,
    )


def _chosen(ask: Ask, conductor: Conductor) -> bytes | None:
    """The root of the codec that is asked for, if one is."""
    if ask.codec is None:
        return None
    if not ask.identity.exclusive:
        problem = "a codec is chosen for an agent of its own: name one, too (X-Agent-ID)"
        raise InvalidRequest(problem, "codec")
    return conductor.roots.root(ask.identity.tenant, ask.codec)


def _recalled(
    ask: Ask, conductor: Conductor, chosen: bytes | None, roots: Sequence[bytes]
) -> tuple[tuple[Message, ...], Prompt, Session | None]:
    """The messages as they are remembered, the prompt made of them, and whom it goes on from.

    Of a conversation without a name it is known by its prompt alone what else its answers were;
    where that changes what the model is told, the prompt is made again.
    """
    identity, registry = ask.identity, conductor.keeper.registry
    named = _named(registry, identity, roots)
    messages = as_said(ask.conversation.messages, registry, identity.tenant, roots, named)
    conversation = evolve(ask.conversation, messages=messages)
    prompt, known = _prompt(ask, conductor, chosen, conversation)
    if named is None and known is not None:
        messages = as_said(messages, registry, identity.tenant, roots, known)
        if [*map(spoken, messages)] != [*map(spoken, conversation.messages)]:
            conversation = evolve(conversation, messages=messages)
            prompt, known = _prompt(ask, conductor, chosen, conversation)
    return messages, prompt, known


def _prompt(
    ask: Ask, conductor: Conductor, chosen: bytes | None, conversation: Conversation
) -> tuple[Prompt, Session | None]:
    """The prompt, and the session that it goes on from, which may lie under another root."""
    identity, registry = ask.identity, conductor.keeper.registry
    roots = conductor.roots.of(identity.tenant)
    known: Session | None = None
    _check_tokens(conversation.text, conductor.engine.card.vocabulary)

    def recall(rendered: Sequence[RenderedSpan]) -> Session | None:
        nonlocal known
        known = _known(registry, identity, roots, chosen, rendered)
        return known

    prompt = conductor.builder.build_recalling(conversation, recall)
    if known is not None and chosen not in (None, known.key.root):
        prompt = evolve(prompt, miss=Miss.CODEC_CHANGED)
    elif known is None and _speaks_of_before(conversation):
        prompt = evolve(prompt, miss=_why_unknown(prompt, registry, identity, roots))
    return (prompt.before_answer() if ask.max_tokens == 0 else prompt), known


def _check_tokens(text: str | tuple[int, ...] | None, vocabulary: int) -> None:
    for token in text if isinstance(text, tuple) else ():
        if not 0 <= token < vocabulary:
            raise InvalidRequest(f"there is no token {token}, of {vocabulary}", "prompt")


def _within(sampling: Sampling, vocabulary: int) -> Sampling:
    """`sampling`, which speaks of tokens that there are."""
    for token, _ in sampling.logit_bias:
        if not 0 <= token < vocabulary:
            raise InvalidRequest(f"there is no token {token}, of {vocabulary}", "logit_bias")
    return sampling


def _guide(
    conductor: Conductor, reading: Reading, structure: Structure | Grammar | None
) -> Guide | None:
    if structure is None:
        return None
    grammars = conductor.grammars
    if grammars is None:
        raise InvalidRequest("this service cannot keep answers to a grammar")
    if not isinstance(structure, Grammar):
        structure = grammar(structure, reading, grammars.spelled)
    return grammars.guide(structure)


def _known(
    registry: SessionRegistry,
    identity: Identity,
    roots: Sequence[bytes],
    chosen: bytes | None,
    rendered: Sequence[RenderedSpan],
) -> Session | None:
    """The session that the conversation goes on from: by its name, else by what was said.

    An agent that has a codec `chosen` for it has its own session, or one that is kept with that.
    """
    named = _named(registry, identity, roots)
    if named is not None and (identity.exclusive or continues(named, rendered)):
        return named
    return registry.recognise(identity.tenant, roots if chosen is None else (chosen,), rendered)


def _named(registry: SessionRegistry, identity: Identity, roots: Sequence[bytes]) -> Session | None:
    if identity.name is None:
        return None
    name = identity.name if identity.exclusive else f"{NAMELESS}{identity.name}"
    return registry.named(identity.tenant, roots, name)


def _why_unknown(
    prompt: Prompt, registry: SessionRegistry, identity: Identity, roots: Sequence[bytes]
) -> Miss:
    """Why nobody is known who said what the conversation speaks of."""
    named = _named(registry, identity, roots)
    if named is not None:  # it is hinted at, and told otherwise than it went
        return miss_of(prompt, named)
    elsewhere = _is_elsewhere(registry, identity, roots)
    return Miss.MODEL_CHANGED if elsewhere else Miss.NO_SESSION


def _is_elsewhere(registry: SessionRegistry, identity: Identity, roots: Sequence[bytes]) -> bool:
    if identity.name is None:
        return False
    name = identity.name if identity.exclusive else f"{NAMELESS}{identity.name}"
    return registry.is_elsewhere(identity.tenant, roots, name)


def _heir(identity: Identity, root: bytes, known: Session | None) -> SessionKey | None:
    """Whose resting sequence the turn may take over."""
    if identity.exclusive and identity.name is not None:
        return SessionKey(identity.tenant, root, identity.name)
    return known.key if known else None


def _expected(prompt: Prompt, known: Session | None) -> int:
    """How many rows of the prompt the session had at least: all before its last answer.

    Where it stands does not tell: a session whose rows were evicted has been moved back.
    """
    if known is None or prompt.miss is not Miss.NONE:
        return 0
    said = [number for number, span in enumerate(known.spans) if span.role == "assistant"]
    return sum(len(span.ids) for span in known.spans[: said[-1]]) if said else 0


def _speaks_of_before(conversation: Conversation) -> bool:
    return any(message.role == "assistant" for message in conversation.messages)
