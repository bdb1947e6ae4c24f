"""mlx-lm's own generation functions with prompt caches that are kept in a home."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agentcache.domain.compaction import MOST_SMALL
from agentcache.domain.errors import AdapterError, HomeLocked, InvalidRequest, ModelError
from agentcache.prompt_cache import Found, PromptCaches, prompt_caches
from tests.tiny_models import tiny_llama
from tests.tiny_shapes import SHAPES

import mlx.core as mx  # isort: skip  (after the BLAS)
from mlx_lm import load, stream_generate  # isort: skip
from mlx_lm.models.cache import RotatingKVCache, make_prompt_cache, trim_prompt_cache  # isort: skip

PROMPT = [7 * n % 250 + 3 for n in range(300)]
OTHER = [*PROMPT[:200], *(11 * n % 250 + 3 for n in range(40))]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("llama"), seed=1)


@pytest.fixture(scope="module")
def loaded(folder: Path) -> tuple[Any, Any]:
    model, tokenizer = load(str(folder))
    return model, tokenizer


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


@pytest.fixture
def caches(loaded: tuple[Any, Any], home: Path) -> Iterator[PromptCaches]:
    with prompt_caches(loaded[0], home=home) as opened:
        yield opened


def run(model: Any, ids: Sequence[int], cache: list[Any]) -> mx.array:
    """The logits after `ids`; their rows are in `cache` then."""
    logits = model(mx.array([list(ids)]), cache=cache)[0, -1]
    mx.eval(logits)
    return logits


def a_cache(model: Any, ids: Sequence[int]) -> list[Any]:
    cache: list[Any] = make_prompt_cache(model)
    run(model, ids, cache)
    return cache


def rows(cache: list[Any]) -> list[bytes]:
    parts = [part for one in cache for part in one.keys_and_values()]
    return [np.asarray(part).tobytes() for part in parts]


def test_nothing_is_known_of_the_first_prompt(caches: PromptCaches) -> None:
    found = caches.fetch(PROMPT)
    assert (found.rest, found.restored) == (PROMPT, 0)
    assert all(one.empty() for one in found.cache)  # type: ignore[attr-defined]


def test_all_but_the_last_row_come_back_to_the_bit(loaded, caches: PromptCaches) -> None:
    cache = a_cache(loaded[0], PROMPT)
    caches.commit(PROMPT, cache)
    found = caches.fetch(PROMPT)
    assert (found.rest, found.restored) == (PROMPT[-1:], len(PROMPT) - 1)
    trim_prompt_cache(cache, 1)
    assert rows(found.cache) == rows(cache)


def test_rows_are_there_for_whoever_opens_the_home_next(loaded, home: Path) -> None:
    model, tokenizer = loaded
    said: list[list[int]] = []
    for restored in (0, len(PROMPT) - 1):
        with prompt_caches(model, home=home) as caches:
            found = caches.fetch(PROMPT)
            assert found.restored == restored
            told = stream_generate(
                model, tokenizer, found.rest, max_tokens=6, prompt_cache=found.cache
            )
            said.append([one.token for one in told])
            kept = caches.commit([*PROMPT, *said[-1]], found.cache)
            assert (kept.durable, kept.problem) == (True, None)
    assert said[0] == said[1]


def test_a_prompt_that_parts_gets_the_rows_up_to_there(loaded, caches: PromptCaches) -> None:
    caches.commit(PROMPT, a_cache(loaded[0], PROMPT))
    found = caches.fetch(OTHER)
    assert (found.rest, found.restored) == (OTHER[200:], 200)
    continued = run(loaded[0], found.rest, found.cache)
    whole = run(loaded[0], OTHER, make_prompt_cache(loaded[0]))
    np.testing.assert_allclose(np.asarray(continued), np.asarray(whole), rtol=0, atol=1e-3)


def test_only_new_rows_are_encoded(loaded, caches: PromptCaches) -> None:
    cache = a_cache(loaded[0], PROMPT)
    assert caches.commit(PROMPT, cache).new == len(PROMPT)
    assert caches.commit(PROMPT, cache).new == 0
    before = caches.memory_bytes
    run(loaded[0], OTHER[:10], cache)
    assert caches.commit([*PROMPT, *OTHER[:10]], cache).new == 10
    assert caches.memory_bytes - before == before * 10 // len(PROMPT)


def test_a_conversation_of_many_commits_lies_in_few_files_and_comes_back_to_the_bit(
    loaded, home: Path
) -> None:
    model, _ = loaded
    ids, cache = PROMPT[:60], a_cache(model, PROMPT[:60])
    with prompt_caches(model, home=home) as caches:
        caches.commit(ids, cache)
        for token in PROMPT[60:100]:
            run(model, [token], cache)
            ids = [*ids, token]
            caches.commit(ids, cache)
    assert len(list((home / "segments").rglob("*.safetensors"))) < MOST_SMALL
    with prompt_caches(model, home=home) as caches:
        found = caches.fetch([*ids, 5])
        assert found.restored == len(ids)
        assert rows(found.cache) == rows(cache)


def test_what_somebody_does_with_a_cache_is_seen_by_nobody_else(
    loaded, caches: PromptCaches
) -> None:
    caches.commit(PROMPT, a_cache(loaded[0], PROMPT))
    first = caches.fetch(PROMPT)
    before = rows(first.cache)
    trim_prompt_cache(first.cache, 100)
    run(loaded[0], OTHER[-40:], first.cache)
    assert rows(caches.fetch(PROMPT).cache) == before


def test_a_cache_can_be_continued_after_it_was_committed(loaded, caches: PromptCaches) -> None:
    cache = a_cache(loaded[0], PROMPT)
    caches.commit(PROMPT, cache, wait=False)
    before = rows(cache)
    trim_prompt_cache(cache, 50)
    run(loaded[0], OTHER[:50], cache)
    caches.flush()
    found = caches.fetch([*PROMPT, 5])
    assert rows(found.cache) == before


@pytest.mark.parametrize("more", [-1, 1])
def test_a_cache_of_another_length_than_its_ids_is_refused(
    loaded, caches: PromptCaches, more: int
) -> None:
    ids = [*PROMPT, 5][: len(PROMPT) + more]
    with pytest.raises(InvalidRequest, match=rf"holds 300 rows for {len(ids)} ids"):
        caches.commit(ids, a_cache(loaded[0], PROMPT))
    assert (caches.fetch(PROMPT).restored, caches.memory_bytes) == (0, 0)


def test_layers_of_unequal_length_are_refused(loaded, caches: PromptCaches) -> None:
    cache = a_cache(loaded[0], PROMPT)
    cache[1].trim(1)
    with pytest.raises(InvalidRequest, match="holds 299 or 300 rows"):
        caches.commit(PROMPT, cache)


def test_an_empty_cache_is_refused(loaded, caches: PromptCaches) -> None:
    with pytest.raises(InvalidRequest, match="holds 0 rows for 300 ids"):
        caches.commit(PROMPT, make_prompt_cache(loaded[0]))


def test_a_cache_of_another_model_is_refused(caches: PromptCaches, tmp_path: Path) -> None:
    for shape in ({"kv_heads": 4}, {"layers": 3}, {"dtype": mx.bfloat16}):
        other, _ = load(str(tiny_llama(tmp_path / str(shape), seed=1, **shape)))
        with pytest.raises(InvalidRequest, match=r"another model|has 3 layers"):
            caches.commit(PROMPT, a_cache(other, PROMPT))


def test_a_cache_of_a_batch_is_refused(loaded, caches: PromptCaches) -> None:
    cache: list[Any] = make_prompt_cache(loaded[0])
    loaded[0](mx.array([PROMPT, PROMPT]), cache=cache)
    with pytest.raises(InvalidRequest, match="extract each sequence first"):
        caches.commit(PROMPT, cache)


@pytest.mark.parametrize("ids", [[], [-1], [2**32], ["a"], [1.5], [None]])
def test_what_are_no_token_ids_is_refused(loaded, caches: PromptCaches, ids: list[Any]) -> None:
    with pytest.raises(InvalidRequest, match="ids"):
        caches.fetch(ids)
    with pytest.raises(InvalidRequest, match="ids"):
        caches.commit(ids, make_prompt_cache(loaded[0]))


def test_one_token_has_nothing_before_it(loaded, caches: PromptCaches) -> None:
    caches.commit(PROMPT, a_cache(loaded[0], PROMPT))
    assert caches.fetch(PROMPT[:1]).restored == 0


def test_a_model_of_other_weights_gets_no_rows(loaded, home: Path, tmp_path: Path) -> None:
    with prompt_caches(loaded[0], home=home) as caches:
        caches.commit(PROMPT, a_cache(loaded[0], PROMPT))
    other, _ = load(str(tiny_llama(tmp_path / "other", seed=2)))
    with prompt_caches(other, home=home) as caches:
        assert caches.fetch(PROMPT).restored == 0
    with prompt_caches(loaded[0], home=home) as caches:
        assert caches.fetch(PROMPT).restored > 0


def test_a_weight_changed_in_memory_makes_another_model(folder: Path, home: Path) -> None:
    model, _ = load(str(folder))
    with prompt_caches(model, home=home) as caches:
        caches.commit(PROMPT, a_cache(model, PROMPT))
    norm = model.model.norm
    norm.weight = norm.weight + 0.5
    with prompt_caches(model, home=home) as caches:
        assert caches.fetch(PROMPT).restored == 0


def test_a_model_is_known_by_its_folder_wherever_that_is(
    loaded, folder: Path, home: Path, tmp_path: Path
) -> None:
    with prompt_caches(loaded[0], home=home, model_path=folder) as caches:
        caches.commit(PROMPT, a_cache(loaded[0], PROMPT))
    moved = tiny_llama(tmp_path / "moved", seed=1)
    with prompt_caches(loaded[0], home=home, model_path=moved) as caches:
        assert caches.fetch(PROMPT).restored == len(PROMPT) - 1


def test_tenants_and_codecs_keep_rows_of_their_own(loaded, home: Path) -> None:
    with prompt_caches(loaded[0], home=home) as caches:
        caches.commit(PROMPT, a_cache(loaded[0], PROMPT))
    for other in ({"tenant": "somebody"}, {"codec": "q8"}):
        with prompt_caches(loaded[0], home=home, **other) as caches:
            assert caches.fetch(PROMPT).restored == 0


def test_a_codec_makes_what_is_kept_smaller(loaded, home: Path) -> None:
    sizes = {}
    for codec in ("native", "q8"):
        with prompt_caches(loaded[0], home=home, codec=codec) as caches:
            caches.commit(PROMPT, a_cache(loaded[0], PROMPT))
            sizes[codec] = caches.memory_bytes
            found = caches.fetch(PROMPT)
            np.testing.assert_allclose(*keys(loaded[0], found), rtol=0, atol=0.2)
    assert sizes["q8"] < 0.6 * sizes["native"]


def keys(model: Any, found: Found) -> tuple[Any, Any]:
    """The first layer's keys as they were restored, and as they are when computed."""
    fresh = a_cache(model, PROMPT[: found.restored])
    return tuple(np.asarray(cache[0].keys_and_values()[0]) for cache in (found.cache, fresh))


def test_a_damaged_file_is_a_miss(loaded, home: Path) -> None:
    with prompt_caches(loaded[0], home=home) as caches:
        caches.commit(PROMPT, a_cache(loaded[0], PROMPT))
        longer = a_cache(loaded[0], [*PROMPT, *OTHER])
        caches.commit([*PROMPT, *OTHER], longer)
    files = sorted(home.glob("segments/*/*.safetensors"), key=lambda path: path.stat().st_size)
    shorter = files[0]
    content = bytearray(shorter.read_bytes())
    content[-1] ^= 1
    shorter.write_bytes(content)
    with prompt_caches(loaded[0], home=home) as caches:
        assert caches.fetch([*PROMPT, *OTHER]).restored == len(PROMPT)
        assert caches.commit([*PROMPT, *OTHER], longer).durable
        assert caches.fetch([*PROMPT, *OTHER]).restored == len(PROMPT) + len(OTHER) - 1


def test_rows_that_do_not_fit_on_disk_are_kept_in_ram_and_it_is_told(loaded, home: Path) -> None:
    ids = PROMPT * 8
    with prompt_caches(loaded[0], home=home, disk="1MB") as caches:
        kept = caches.commit(ids, a_cache(loaded[0], ids))
        assert kept.durable is False
        assert "disk cap" in str(kept.problem)
        assert caches.fetch(ids).restored == len(ids) - 1


def test_ram_is_given_back_to_the_cap_and_rows_are_read_from_disk(loaded, home: Path) -> None:
    ids = PROMPT * 10
    with prompt_caches(loaded[0], home=home, memory="1MB") as caches:
        caches.commit(ids, a_cache(loaded[0], ids))
        assert caches.memory_bytes <= 1_000_000 < caches.disk_bytes
        assert caches.fetch(ids).restored == len(ids) - 1


def test_a_home_is_one_process_s_at_a_time(loaded, caches: PromptCaches, home: Path) -> None:
    with pytest.raises(HomeLocked):
        prompt_caches(loaded[0], home=home)


def test_closed_caches_refuse_everything(loaded, home: Path) -> None:
    caches = prompt_caches(loaded[0], home=home)
    caches.close()
    caches.close()
    cache = a_cache(loaded[0], PROMPT)
    for call in (
        lambda: caches.fetch(PROMPT),
        lambda: caches.commit(PROMPT, cache),
        caches.flush,
    ):
        with pytest.raises(ValueError, match="closed"):
            call()


def test_an_unknown_codec_leaves_the_home_alone(loaded, home: Path) -> None:
    with pytest.raises(AdapterError, match="codec 'zip': there is none"):
        prompt_caches(loaded[0], home=home, codec="zip")
    assert not home.exists()


def test_a_model_whose_cache_is_not_understood_leaves_the_home_alone(home: Path) -> None:
    class Strange:
        layers = (1,)

        def make_cache(self) -> list[object]:
            return [object()]

    with pytest.raises(ModelError, match="cache class object is not supported"):
        prompt_caches(Strange(), home=home)  # type: ignore[arg-type]
    assert not home.exists()


@pytest.mark.parametrize("name", SHAPES)
def test_caches_of_every_known_kind_are_continued_to_the_bit(
    name: str, home: Path, tmp_path: Path
) -> None:
    model, _ = load(str(SHAPES[name].made(tmp_path / "model")))
    head, tail = PROMPT[:40], OTHER[-6:]
    cache = a_cache(model, head)
    with prompt_caches(model, home=home) as caches:
        caches.commit(head, cache)
    expected = run(model, tail, cache)
    with prompt_caches(model, home=home) as caches:
        found = caches.fetch([*head, *tail])
        assert (found.rest, found.restored) == (tail, len(head))
        assert run(model, tail, found.cache).tolist() == expected.tolist()
        caches.commit([*head, *tail], found.cache)
        again = caches.fetch([*head, *tail, 5])
        assert again.restored == len(head) + len(tail)
        logits = [run(model, [5], one).tolist() for one in (found.cache, again.cache)]
        assert logits[0] == logits[1]


@pytest.mark.parametrize("name", SHAPES)
def test_caches_of_every_known_kind_are_kept_after_single_tokens(
    name: str, home: Path, tmp_path: Path
) -> None:
    model, _ = load(str(SHAPES[name].made(tmp_path / "model")))
    ids = PROMPT[:21]
    cache = a_cache(model, ids[:2])
    for token in ids[2:]:
        run(model, [token], cache)
    with prompt_caches(model, home=home) as caches:
        caches.commit(ids, cache)
        found = caches.fetch([*ids, 5])
        assert found.restored == len(ids)
        logits = [np.asarray(run(model, [5], one)) for one in (cache, found.cache)]
    # A ring comes back unrolled, so its rows are summed up in another order.
    np.testing.assert_allclose(*logits, rtol=0, atol=1e-4)


def test_a_restored_ring_that_is_not_full_can_be_trimmed(home: Path, tmp_path: Path) -> None:
    model, _ = load(str(SHAPES["gemma3_text"].made(tmp_path / "model")))
    cache = a_cache(model, PROMPT[:6])
    with prompt_caches(model, home=home) as caches:
        caches.commit(PROMPT[:6], cache)
        found = caches.fetch(PROMPT[:7])
    for one in (cache, found.cache):
        assert trim_prompt_cache(one, 2) == 2
    logits = [np.asarray(run(model, OTHER[-3:], one)) for one in (cache, found.cache)]
    np.testing.assert_allclose(*logits, rtol=0, atol=1e-4)


def test_a_rotating_cache_that_keeps_its_first_rows_is_refused(
    loaded, caches: PromptCaches
) -> None:
    cache: list[Any] = [RotatingKVCache(50, keep=4) for _ in range(2)]
    run(loaded[0], PROMPT, cache)
    with pytest.raises(ModelError, match="RotatingKVCache is not supported"):
        caches.commit(PROMPT, cache)
