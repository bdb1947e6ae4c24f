"""What litellm gets of a server, as JSON; run by the Python of an environment that has litellm."""

import json
import sys
from typing import Any

import litellm

url, schema = sys.argv[1], json.loads(sys.argv[2])
tool = {"type": "function", "function": {"name": "look", "parameters": schema}}
common: dict[str, Any] = {
    "model": "openai/tiny",
    "api_base": f"{url}/v1",
    "api_key": "none",
    "messages": [{"role": "user", "content": "Tell me of the sea."}],
    "num_retries": 0,
    "timeout": 180,
}
whole = litellm.completion(**common, max_tokens=10, temperature=0)
stream = litellm.completion(
    **common,
    max_tokens=10,
    temperature=0,
    stream=True,
    stream_options={"include_usage": True},
)
chunks = list(stream)
called = litellm.completion(
    **common, max_tokens=200, tools=[tool], tool_choice="required", parallel_tool_calls=False
)
messages = litellm.completion(
    **common | {"model": "anthropic/tiny", "api_base": url}, max_tokens=10, temperature=0
)
try:
    litellm.completion(**common | {"model": "openai/gpt-none"})
    error = ""
except litellm.NotFoundError as refused:
    error = type(refused).__name__
calls = called.choices[0].message.tool_calls
told = {
    "text": whole.choices[0].message.content,
    "streamed": "".join(c.choices[0].delta.content or "" for c in chunks if c.choices),
    "cached": chunks[-1].usage.prompt_tokens_details.cached_tokens,
    "calls": [[one.function.name, json.loads(one.function.arguments)] for one in calls],
    "messages": messages.choices[0].message.content,
    "error": error,
}
sys.stdout.write(f"\n{json.dumps(told)}\n")
