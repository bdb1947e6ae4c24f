"""Chat templates: the Jinja sources that come with models, rendered as text.

The environment offers what such templates were written for: see "Chat templates" in the manual of
transformers. It is a sandbox, since the template comes with the model.
"""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NoReturn

from attrs import frozen
from jinja2 import Template, TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from agentcache.domain.errors import InvalidRequest

Fields = Mapping[str, Any]

# For models without a template, such as base models: one paragraph a message.
FALLBACK = """\
{{- preamble }}
{%- for tool in tools or [] %}{{ 'Tool: ' + (tool | tojson) + '\n\n' }}{% endfor %}
{%- for message in messages %}
    {{- message.role | capitalize }}: {{ message.content }}
    {%- for call in message.tool_calls or [] %}
        {{- '\n' + (call.function | tojson) }}
    {%- endfor %}
    {{- '\n\n' }}
{%- endfor %}
{%- if add_generation_prompt %}Assistant:{% endif %}"""

# What templates that write the date are told, whatever the day: a system prompt that changes at
# midnight would make every agent's memory worthless. It is the one that Llama 3 falls back to.
FIXED_DATE = datetime(2024, 7, 26)


@frozen(eq=False)
class ChatTemplate:
    """A compiled template; `tool_use` is what some models have beside it for requests with tools.

    `variables` are what the template finds besides the conversation: bos_token, eos_token, ...
    """

    default: Template
    tool_use: Template
    variables: Mapping[str, str]

    @classmethod
    def of(
        cls,
        source: str | Mapping[str, str] | None,
        variables: Mapping[str, str],
        date: datetime = FIXED_DATE,
    ) -> "ChatTemplate":
        """Compile `source`, which may be several templates by name, or None for the fallback.

        Raises jinja2.TemplateError when it is not a template.
        """
        environment = _environment(date)
        named = {"default": source or FALLBACK} if isinstance(source, str | None) else source
        default = named.get("default") or next(iter(named.values()))
        return cls(
            environment.from_string(default),
            environment.from_string(named.get("tool_use", default)),
            variables,
        )

    def render(
        self,
        messages: Sequence[Fields],
        tools: Sequence[Fields],
        generation_prompt: bool,
        effort: str | None = None,
    ) -> str:
        """The conversation as text. Raises InvalidRequest when the template refuses it."""
        template = self.tool_use if tools else self.default
        try:
            return template.render(
                messages=messages,
                tools=tools or None,
                documents=None,
                add_generation_prompt=generation_prompt,
                **self.variables,
                **_thinking(effort),
            )
        except _Refused as refusal:
            raise InvalidRequest(str(refusal), "messages") from refusal
        except (TemplateError, TypeError, ValueError, LookupError, AttributeError) as error:
            problem = f"the model's chat template cannot render this conversation: {error}"
            raise InvalidRequest(problem, "messages") from error


def _thinking(effort: str | None) -> dict[str, object]:
    """The variables by which templates are told how much to think: Qwen's, and that of gpt-oss."""
    if effort is None:
        return {}
    told = {"none": "low", "minimal": "low", "xhigh": "high", "max": "high"}.get(effort, effort)
    return {"enable_thinking": effort != "none", "reasoning_effort": told}


class _Refused(TemplateError):
    """The template itself called raise_exception."""


class _Generation(Extension):
    """`{% generation %}` marks assistant text for training; here it only groups."""

    tags = {"generation"}  # noqa: RUF012 - Jinja declares a set

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _environment(date: datetime) -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = date.strftime
    return environment


def _refuse(message: str) -> NoReturn:
    raise _Refused(message)


def _tojson(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # Jinja's own filter escapes for HTML, which models were not trained on.
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )
