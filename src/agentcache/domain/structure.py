"""Answers of a given structure, as grammars: JSON of a schema, or calls of tools.

There is no free white space in them, on which a small model would spend its tokens. For the same
reason a model does not think first, unless its prompt has begun a thought for it.
"""

import json
from collections.abc import Callable, Mapping, Sequence

from attrs import frozen

from agentcache.domain.answer import AnswerFormat, Reading, Tools
from agentcache.domain.conversation import Json
from agentcache.domain.dictated import dictated
from agentcache.domain.errors import InvalidRequest
from agentcache.domain.guide import Grammar
from agentcache.domain.schema_refs import check_refs

ANY_OBJECT: Mapping[str, Json] = {"type": "object"}
MOST_DICTATED = 4096  # characters
_NO_WHITE_SPACE = {"whitespace_flexible": False}
_IN_ANY_TOKENS = '%llguidance {"no_forcing": true}'

Spell = Callable[[str], str]  # a text, as Lark: its control tokens by id, all else quoted


@frozen
class JsonAnswer:
    """The answer is a JSON text that `schema` (JSON Schema) describes, or with `calls`, tools."""

    schema: Mapping[str, Json]
    calls: bool = False


@frozen
class CalledTools:
    """The answer calls tools: any of `names`, all tools there are if that is empty; one or more."""

    names: tuple[str, ...] = ()
    several: bool = True


Structure = JsonAnswer | CalledTools


def grammar(structure: Structure, reading: Reading, spell: Spell) -> Grammar:
    """`structure` as what an answer that is read so is kept to.

    Raises InvalidRequest when a tool is called for that there is not.
    """
    form, tools = reading.format, reading.tools
    begun = reading.opened and form.thinks is not None
    rules = ["start: thought answer" if begun else "start: answer"]
    if isinstance(structure, CalledTools):
        rules += ["answer: calls", *_calls(structure, form, tools, spell)]
    elif structure.calls and tools and form.calls is not None:
        rules += ["answer: json | calls", f"json: {_json(structure.schema)}"]
        rules += _calls(CalledTools(several=not reading.single), form, tools, spell)
    else:
        rules.append(f"answer: {_json(structure.schema)}")
    if begun and form.thinks is not None:
        rules += _thinking(form.thinks, spell)
    if any(dictated(schema) > MOST_DICTATED for schema in _schemas(structure, tools)):
        # What is dictated is sampled in the tokens that the tokenizer has for it. To find them,
        # each step looks at all of it that is to come: 40 ms for 200 kB, while every turn waits.
        rules.insert(0, _IN_ANY_TOKENS)
    return Grammar("\n".join(rules))


def _calls(wanted: CalledTools, form: AnswerFormat, tools: Tools, spell: Spell) -> list[str]:
    if form.calls is None:
        raise InvalidRequest("this model calls no tools", "tools")
    begin, end = form.calls
    asked = _asked(wanted.names, tools)
    several = wanted.several and bool(end)  # else nothing tells where the first one ends
    rules = [f"calls: call{' (SEPARATOR call)*' if several else ''}", 'SEPARATOR: "\\n"']
    rules.append("call: " + " | ".join(f"call_{at}" for at in range(len(asked))))
    for at, function in enumerate(asked):
        name = json.dumps(function["name"], ensure_ascii=False)
        head = _quoted(f'{{"name":{name},"arguments":')
        parameters = _objects(function.get("parameters") or ANY_OBJECT, name)
        last = spell(end) if end else ""
        rules.append(f'call_{at}: {spell(begin)} {head} {_json(parameters)} "}}" {last}')
    return rules


def _objects(parameters: Json, name: str) -> Mapping[str, Json]:
    """The schema of arguments, which are objects even if the schema does not say so."""
    if not isinstance(parameters, Mapping):
        raise InvalidRequest(f"the parameters of {name} are no JSON schema", "tools")
    kinds = parameters.get("type", "object")
    if kinds != "object" and not (isinstance(kinds, list | tuple) and "object" in kinds):
        raise InvalidRequest(f"the parameters of {name} are not of type object", "tools")
    return {**parameters, "type": "object"}


def _asked(names: Sequence[str], tools: Tools) -> list[Mapping[str, Json]]:
    functions = [tool["function"] for tool in tools]
    found = [one for one in functions if isinstance(one, Mapping) and isinstance(one["name"], str)]
    chosen = [one for one in found if not names or one["name"] in names]
    missing = set(names) - {one["name"] for one in chosen}
    if missing or not chosen:
        problem = f"there is no tool {sorted(missing)[0]!r}" if missing else "there are no tools"
        raise InvalidRequest(f"{problem} that could be called", "tool_choice")
    return chosen


def _schemas(structure: Structure, tools: Tools) -> list[Mapping[str, Json]]:
    """The schemas that the answer may have to fit."""
    found = [structure.schema] if isinstance(structure, JsonAnswer) else []
    if isinstance(structure, CalledTools) or structure.calls:
        functions = [tool["function"] for tool in tools]
        parameters = [one.get("parameters") for one in functions if isinstance(one, Mapping)]
        found += [one for one in parameters if isinstance(one, Mapping)]
    return found


def _thinking(markers: tuple[str, str], spell: Spell) -> list[str]:
    end = spell(markers[1])
    if end.startswith('"'):  # text like any other: what comes before it cannot contain it
        return [f"thought[suffix={end}]: /(.|\\n)*/"]
    return [f"thought: TEXT {end} WHITE?", "TEXT: /(.|\\n)*/", "WHITE: /\\s{1,2}/"]


def _json(schema: Mapping[str, Json]) -> str:
    check_refs(schema)
    guided = {**schema, "x-guidance": _NO_WHITE_SPACE}
    return f"%json {json.dumps(guided, ensure_ascii=False)}"


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
