"""Volatile text in system prompts, in the shapes in which clients were seen to send it."""

import pytest

from agentcache.domain.conversation import Conversation, Message
from agentcache.domain.volatile import RULES, settled


def rewritten(text: str, role: str = "system") -> str:
    return settled(Conversation((Message(role, text), Message("user", "hi")))).messages[0].content


@pytest.mark.parametrize(
    ("sent", "seen"),
    [
        # Claude Code 2.1, the first system block: anthropics/claude-code#68900.
        (
            "x-anthropic-billing-header: cc_version=2.1.177.01c; cc_entrypoint=sdk-cli; cch=36ee5;"
            "\nYou are Claude Code.",
            "You are Claude Code.",
        ),
        # The coding agent pi: earendil-works/pi#2013.
        (
            "Be brief.\nCurrent date and time: Monday, March 9, 2026 at 06:00:31 PM PDT\nRead.",
            "Be brief.\nCurrent date and time: Monday, March 9, 2026\nRead.",
        ),
        # nanobot: HKUDS/nanobot#981.
        (
            "## Current Time\n2026-02-22 14:03 (Sunday) (CET)\n\n## Workspace",
            "## Current Time\n2026-02-22 (Sunday) (CET)\n\n## Workspace",
        ),
        # opencrabs: adolfousier/opencrabs#657.
        ("Timestamp: 2026-07-20 12:00:07 UTC\nTools:", "Timestamp: 2026-07-20\nTools:"),
        # n8n's assistant: n8n-io/n8n#32414.
        ("Current time: 2026-06-16T19:42:07.913+03:00\n", "Current time: 2026-06-16\n"),
        # home-generative-agent: goruck/home-generative-agent#617.
        (
            "Current time is 15:09:20. Today's date is 2026-09-09.\nYou are a voice assistant.",
            "Today's date is 2026-09-09.\nYou are a voice assistant.",
        ),
        ("Tokens left: 198,766\nBe brief.", "Be brief."),
        ("<budget>\n12_000/200_000 tokens remaining\n</budget>", "<budget>\n</budget>"),
    ],
)
def test_what_rotates_is_gone_and_the_rest_stays(sent: str, seen: str) -> None:
    assert rewritten(sent) == seen
    assert rewritten(seen) == seen


@pytest.mark.parametrize(
    "text",
    [
        "Today's date is 2026-09-09.",
        "You have 12 tokens remaining. Then stop.",
        "The meeting is on 2026-02-22 14:03, be on time.",
        "Log lines look like this: 2026-02-22 14:03:11 ERROR",
        "Explain what an x-anthropic-billing-header: line is.",
        "Time is money.",
    ],
)
def test_what_only_looks_like_it_is_left_alone(text: str) -> None:
    assert rewritten(text) == text


def test_only_system_messages_are_rewritten() -> None:
    text = "Current time is 15:09:20."
    assert [rewritten(text, role) for role in ("user", "assistant", "tool")] == [text] * 3
    assert rewritten(text, "developer") == ""


def test_each_rule_can_be_left_out() -> None:
    conversation = Conversation((Message("system", "Tokens left: 5\n"),))
    others = [rule for rule in RULES if rule.name != "tokens-left"]
    assert settled(conversation, others) is conversation
    assert settled(conversation).messages[0].content == ""
