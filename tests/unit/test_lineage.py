"""The lineage: what a prompt finds again, what stays, what leaves."""

import pytest

from agentcache.domain.errors import IntegrityError
from agentcache.domain.lineage import Lineage
from agentcache.domain.request import Tier
from agentcache.domain.segment import Segment
from agentcache.domain.session import Cursor
from agentcache.domain.spec import CacheSpec
from agentcache.domain.tokens import Tokens, tokens
from tests.unit.domain_strategies import FULL, STATE, WINDOW

ROOT = b"r" * 32


def _add(
    lineage: Lineage,
    ids: str,
    parent: Segment | None = None,
    row: int | None = None,
    tier: Tier = Tier.WARM,
) -> Segment:
    start = 0 if parent is None else parent.stop if row is None else row
    key = parent.key if parent else None
    segment = Segment.following(ROOT, key, start, tokens(map(int, ids)), 10 * len(ids))
    lineage.add(segment, tier)
    return segment


def _ids(text: str) -> "Tokens[int]":
    return tokens(map(int, text))


def test_a_prompt_matches_to_the_token_where_all_layers_are_full() -> None:
    lineage = Lineage(FULL)
    segment = _add(lineage, "12345")
    match = lineage.match(ROOT, _ids("1239"))
    assert (match.length, match.restore) == (3, 3)
    assert match.cursor == Cursor(segment.key, 3)


def test_nothing_matches_under_another_root() -> None:
    lineage = Lineage(FULL)
    _add(lineage, "123")
    match = lineage.match(b"other", _ids("123"))
    assert (match.length, match.restore, match.steps, match.cursor) == (0, 0, (), None)


def test_a_match_goes_on_into_a_child_that_leaves_in_the_middle() -> None:
    lineage = Lineage(FULL)
    parent = _add(lineage, "12345")
    child = _add(lineage, "99", parent, 2)
    match = lineage.match(ROOT, _ids("129977"))
    assert match.keys == (parent.key, child.key)
    assert [step.stop for step in match.steps] == [2, 4]
    assert match.length == 4


def test_a_child_behind_the_first_difference_is_not_on_the_path() -> None:
    lineage = Lineage(FULL)
    parent = _add(lineage, "12345")
    _add(lineage, "9", parent, 4)
    assert lineage.match(ROOT, _ids("12779")).length == 2


def test_of_two_paths_the_longer_one_is_found() -> None:
    lineage = Lineage(FULL)
    parent = _add(lineage, "12")
    _add(lineage, "34", parent)
    longer = _add(lineage, "345", parent)
    assert lineage.match(ROOT, _ids("12345")).keys == (parent.key, longer.key)


def test_a_segment_is_not_left_after_fewer_rows_than_are_worth_sharing() -> None:
    lineage = Lineage(FULL, least_shared=3)
    first = _add(lineage, "12345")
    assert lineage.match(ROOT, _ids("1299")).length == 0
    assert lineage.match(ROOT, _ids("1239")).length == 3
    assert lineage.match(ROOT, _ids("12")).length == 2  # it ends there, and parts from nothing
    other = _add(lineage, "1299")
    assert lineage.match(ROOT, _ids("129977")).keys == (other.key,)
    assert lineage.match(ROOT, _ids("12345")).keys == (first.key,)


def test_a_short_segment_that_agrees_as_a_whole_is_always_used() -> None:
    lineage = Lineage(FULL, least_shared=3)
    parent = _add(lineage, "12345")
    child = _add(lineage, "67", parent)
    assert lineage.match(ROOT, _ids("12345678")).keys == (parent.key, child.key)


def test_a_limit_leaves_tokens_to_run() -> None:
    lineage = Lineage(FULL)
    _add(lineage, "1234")
    match = lineage.match(ROOT, _ids("1234"), limit=3)
    assert (match.length, match.restore) == (4, 3)
    assert [step.stop for step in match.restoring()] == [3]


def test_only_the_segments_that_a_restore_needs_are_restored() -> None:
    lineage = Lineage(FULL)
    first = _add(lineage, "12")
    _add(lineage, "34", first)
    match = lineage.match(ROOT, _ids("1234"), limit=2)
    assert [step.segment.key for step in match.restoring()] == [first.key]


def test_state_is_restored_at_the_end_of_a_segment_only() -> None:
    lineage = Lineage(STATE)
    first = _add(lineage, "12")
    _add(lineage, "345", first)
    match = lineage.match(ROOT, _ids("1234"))
    assert (match.length, match.restore) == (4, 2)
    assert lineage.match(ROOT, _ids("12345"), limit=4).restore == 2
    assert lineage.match(ROOT, _ids("12345")).restore == 5


def test_state_at_the_end_of_a_child_that_left_in_the_middle_is_restored() -> None:
    lineage = Lineage(STATE)
    parent = _add(lineage, "12345")
    _add(lineage, "77", parent, 3)
    match = lineage.match(ROOT, _ids("123779"))
    assert (match.restore, [step.stop for step in match.restoring()]) == (5, [3, 5])


def test_a_parents_end_is_no_place_to_continue_on_the_way_to_a_child_that_left_before() -> None:
    lineage = Lineage(STATE)
    parent = _add(lineage, "11")
    _add(lineage, "1122", parent, 1)
    match = lineage.match(ROOT, _ids("11129"))
    assert match.restore == 2
    assert match.keys == (parent.key,)


def test_window_rows_of_the_middle_are_gone_so_no_path_leads_through_it() -> None:
    lineage = Lineage(WINDOW)
    parent = _add(lineage, "12345")
    whole = _add(lineage, "67", parent)
    match = lineage.match(ROOT, _ids("1234569"))
    assert (match.length, match.restore, match.keys) == (5, 5, (parent.key,))
    assert lineage.match(ROOT, _ids("1239")).steps == ()
    assert lineage.match(ROOT, _ids("1234567")).keys == (parent.key, whole.key)


def test_the_path_to_a_cursor_is_the_way_it_was_matched() -> None:
    lineage = Lineage(FULL)
    parent = _add(lineage, "123")
    child = _add(lineage, "45", parent, 2)
    path = lineage.path(Cursor(child.key, 3))
    assert [(step.segment.key, step.stop) for step in path.steps] == [
        (parent.key, 2),
        (child.key, 3),
    ]
    assert path.cursor == Cursor(child.key, 3)


def test_a_segment_that_is_there_only_gains_the_tier() -> None:
    lineage = Lineage(FULL)
    segment = _add(lineage, "12")
    lineage.add(segment, Tier.COLD, Tier.WARM)
    assert len(lineage) == 1
    assert lineage.resides(segment.key, Tier.COLD)
    assert (lineage.nbytes(Tier.WARM), lineage.nbytes(Tier.COLD)) == (20, 20)
    assert lineage[segment.key] is segment
    assert lineage.count(Tier.WARM) == lineage.count(Tier.COLD) == 1


def test_a_segment_without_its_parent_is_refused() -> None:
    lineage = Lineage(FULL)
    stranger = Segment.following(ROOT, b"nobody", 3, tokens([1]), 1)
    with pytest.raises(KeyError):
        lineage.add(stranger, Tier.WARM)
    lineage.check_integrity()


def test_leaving_a_tier_where_it_is_not_changes_nothing() -> None:
    lineage = Lineage(FULL)
    segment = _add(lineage, "12")
    assert lineage.leave(segment.key, Tier.COLD)
    assert lineage.resides(segment.key, Tier.WARM)
    lineage.check_integrity()


def test_leaving_one_tier_leaves_the_other_and_leaving_the_last_leaves_the_tree() -> None:
    lineage = Lineage(FULL)
    segment = _add(lineage, "12")
    lineage.add(segment, Tier.COLD)
    assert lineage.leave(segment.key, Tier.WARM)
    assert not lineage.resides(segment.key, Tier.WARM)
    assert not lineage.leave(segment.key, Tier.COLD)
    assert segment.key not in lineage
    assert not lineage.resides(segment.key, Tier.COLD)


def test_a_parent_cannot_leave_its_children_behind_and_nothing_has_changed_then() -> None:
    lineage = Lineage(FULL)
    parent = _add(lineage, "12")
    _add(lineage, "3", parent)
    with pytest.raises(IntegrityError, match="children"):
        lineage.leave(parent.key, Tier.WARM)
    lineage.check_integrity()
    assert lineage.nbytes(Tier.WARM) == 30


def test_leaves_are_evicted_before_their_parents() -> None:
    lineage = Lineage(FULL)
    parent = _add(lineage, "12")
    child = _add(lineage, "3", parent)
    gone = []
    while (victim := lineage.coldest(Tier.WARM)) is not None:
        lineage.leave(victim.key, Tier.WARM)
        gone.append(victim.key)
    assert gone == [child.key, parent.key]


def test_what_was_just_built_upon_is_more_recent_than_an_older_stranger() -> None:
    lineage = Lineage(FULL)
    parent, stranger = _add(lineage, "12"), _add(lineage, "5")
    lineage.cut(_add(lineage, "3", parent).key)
    assert lineage.coldest(Tier.WARM) is stranger


def test_a_warm_parent_that_is_also_cold_may_leave_the_warm_tier_first() -> None:
    lineage = Lineage(FULL)
    parent = _add(lineage, "12")
    lineage.add(parent, Tier.COLD)
    _add(lineage, "3", parent)
    other = _add(lineage, "5")
    lineage.touch([other.key])
    lineage.hold(list(lineage.match(ROOT, _ids("123")).keys[1:]))
    victim = lineage.coldest(Tier.WARM)
    assert victim is not None
    assert victim.key == parent.key
    cold = lineage.coldest(Tier.COLD)
    assert cold is None, "its child would be left behind"


def test_what_is_held_is_not_evicted_until_it_is_released() -> None:
    lineage = Lineage(FULL)
    segment = _add(lineage, "12")
    lineage.hold([segment.key])
    assert lineage.coldest(Tier.WARM) is None
    lineage.release([segment.key])
    assert lineage.coldest(Tier.WARM) is segment


def test_an_agent_that_comes_back_survives_a_sweep_of_one_time_prompts() -> None:
    lineage = Lineage(FULL)
    agent = _add(lineage, "123")
    lineage.touch([agent.key])
    for first in range(4, 10):
        _add(lineage, f"{first}1")
    for _ in range(6):
        victim = lineage.coldest(Tier.WARM)
        assert victim is not None
        assert victim is not agent
        lineage.leave(victim.key, Tier.WARM)


def test_cutting_takes_the_segment_and_all_that_descends_from_it_leaves_first() -> None:
    lineage = Lineage(FULL)
    parent = _add(lineage, "12")
    middle = _add(lineage, "34", parent)
    leaf = _add(lineage, "5", middle)
    other = _add(lineage, "9", parent, tier=Tier.COLD)
    assert lineage.cut(middle.key) == (leaf, middle)
    assert parent.key in lineage
    assert other.key in lineage
    assert lineage.nbytes(Tier.WARM) == 20
    lineage.check_integrity()


def test_a_lease_on_what_was_cut_can_still_be_released() -> None:
    lineage = Lineage(FULL)
    segment = _add(lineage, "12")
    lineage.hold([segment.key])
    lineage.cut(segment.key)
    lineage.add(segment, Tier.WARM)
    assert lineage.coldest(Tier.WARM) is None
    lineage.release([segment.key])
    assert lineage.coldest(Tier.WARM) is segment


def test_a_conversation_of_hundreds_of_turns_is_matched_to_its_end() -> None:
    lineage = Lineage(STATE)
    at = None
    for turn in range(400):
        at = _add(lineage, str(turn % 10), at)
    ids = tokens(turn % 10 for turn in range(400))
    assert lineage.match(ROOT, ids).restore == 400


@pytest.mark.parametrize(
    "damage", ["unlisted", "parent", "row", "nowhere", "order", "bytes", "key"]
)
def test_damage_is_noticed(damage: str) -> None:
    lineage = Lineage(FULL)
    parent = _add(lineage, "12")
    child = _add(lineage, "3", parent)
    if damage == "unlisted":
        lineage._nodes[parent.key].children.clear()
    elif damage == "parent":
        del lineage._nodes[parent.key]
    elif damage == "row":
        far = Segment.following(ROOT, parent.key, 7, tokens([3]), 1)
        lineage.add(far, Tier.WARM)
    elif damage == "nowhere":
        lineage._tiers[Tier.WARM].remove(child)
    elif damage == "order":
        lineage._tiers[Tier.COLD].order.add(b"stranger")
    elif damage == "bytes":
        lineage._tiers[Tier.WARM].nbytes += 1
    else:
        lineage._nodes[b"wrong"] = lineage._nodes.pop(child.key)
    with pytest.raises(IntegrityError):
        lineage.check_integrity()


class TestAlong:
    """The way to a place of one's own, of which every row counts."""

    def test_few_rows_of_ones_own_segment_are_worth_going_on_from(self) -> None:
        lineage = Lineage(FULL, least_shared=4)
        first = _add(lineage, "12345")
        own = _add(lineage, "67890", first)
        prompt = _ids("12345679")
        assert lineage.match(ROOT, prompt).length == 5
        along = lineage.along(Cursor(own.key, 10), prompt, len(prompt))
        assert (along.length, along.restore, along.keys) == (7, 7, (first.key, own.key))

    def test_it_goes_no_further_than_where_one_stands_or_may_go(self) -> None:
        lineage = Lineage(FULL, least_shared=4)
        first = _add(lineage, "12345")
        own = _add(lineage, "67", first, 3)
        prompt = _ids("1236789")
        assert lineage.along(Cursor(own.key, 5), prompt, 9).length == 5
        assert lineage.along(Cursor(own.key, 4), prompt, 9).length == 4
        assert lineage.along(Cursor(own.key, 5), prompt, 2).length == 2
        assert lineage.along(Cursor(first.key, 2), prompt, 9).length == 2

    def test_where_nothing_agrees_there_is_nothing(self) -> None:
        lineage = Lineage(FULL)
        own = _add(lineage, "12345")
        assert lineage.along(Cursor(own.key, 5), _ids("9"), 1).steps == ()

    def test_a_place_that_is_gone_leads_nowhere(self) -> None:
        assert Lineage(FULL).along(Cursor(b"gone", 5), _ids("123"), 3).steps == ()

    @pytest.mark.parametrize("spec", [WINDOW, STATE])
    def test_where_only_ends_are_places_to_continue_it_is_no_help(self, spec: CacheSpec) -> None:
        lineage = Lineage(spec)
        own = _add(lineage, "12345")
        assert lineage.along(Cursor(own.key, 5), _ids("1239"), 4).steps == ()
