"""Our LRUPromptCache does what mlx-lm's does, and what mlx-lm's has forgotten it finds again.

The first half runs over both: what is expected is what mlx-lm's own does.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agentcache.prompt_cache import lru_prompt_cache
from tests.tiny_models import tiny_llama
from tests.tiny_shapes import SHAPES

import mlx.core as mx  # isort: skip  (after the BLAS)
from mlx_lm import load  # isort: skip
from mlx_lm.models.cache import LRUPromptCache, make_prompt_cache, trim_prompt_cache  # isort: skip

Make = Callable[..., LRUPromptCache]
IDS = [7 * n % 250 + 3 for n in range(60)]
OTHERS = [[n, *IDS[1:]] for n in range(200, 206)]  # nothing in common with IDS, or each other


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("llama"), seed=1)


@pytest.fixture(scope="module")
def model(folder: Path) -> Any:
    return load(str(folder))[0]


@pytest.fixture(scope="module")
def key(folder: Path) -> object:
    """What mlx_lm.server calls the model: the paths of model, adapter and draft model."""
    return (str(folder), None, None)


@pytest.fixture(params=["mlx-lm's", "ours"])
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Make]:
    made: list[Any] = []

    def ours(*limits: int) -> LRUPromptCache:
        made.append(lru_prompt_cache(*limits, home=tmp_path / "home"))
        return made[-1]

    yield LRUPromptCache if request.param == "mlx-lm's" else ours
    for cache in made:
        cache.close()


def a_cache(model: Any, ids: Sequence[int]) -> list[Any]:
    cache: list[Any] = make_prompt_cache(model)
    mx.eval(model(mx.array([list(ids)]), cache=cache))
    return cache


def all_but_the_last(model: Any) -> list[Any]:
    """A cache of IDS without the last; the rows are those of one forward over all of them."""
    cache = a_cache(model, IDS)
    trim_prompt_cache(cache, 1)
    return cache


def rows(cache: list[Any]) -> list[bytes]:
    return [np.asarray(part).tobytes() for one in cache for part in one.keys_and_values()]


def test_nothing_was_inserted(make: Make, key: object) -> None:
    cache = make()
    assert cache.fetch_nearest_cache(key, IDS) == (None, IDS)
    assert (len(cache), cache.nbytes) == (0, 0)


def test_an_exact_match_leaves_nothing_to_run(make: Make, model: Any, key: object) -> None:
    cache = make()
    cache.insert_cache(key, IDS, a_cache(model, IDS))
    found, rest = cache.fetch_nearest_cache(key, IDS)
    assert rest == []
    assert rows(found) == rows(a_cache(model, IDS))


def test_a_shorter_match_leaves_the_rest_to_run(make: Make, model: Any, key: object) -> None:
    cache = make()
    cache.insert_cache(key, IDS[:40], a_cache(model, IDS[:40]))
    found, rest = cache.fetch_nearest_cache(key, IDS)
    assert rest == IDS[40:]
    assert [one.offset for one in found] == [40, 40]


def test_a_longer_match_is_trimmed(make: Make, model: Any, key: object) -> None:
    cache = make()
    cache.insert_cache(key, IDS, a_cache(model, IDS))
    found, rest = cache.fetch_nearest_cache(key, [*IDS[:30], 1, 2])
    assert rest == [1, 2]
    assert [one.offset for one in found] == [30, 30]
    found, rest = cache.fetch_nearest_cache(key, IDS[:30])
    assert rest == IDS[29:30]
    assert [one.offset for one in found] == [29, 29]


def test_models_are_kept_apart(
    make: Make, model: Any, key: object, folder: Path, tmp_path: Path
) -> None:
    cache = make()
    cache.insert_cache(key, IDS, a_cache(model, IDS))
    other = (str(tiny_llama(tmp_path / "other", seed=2)), None, None)
    assert cache.fetch_nearest_cache(other, IDS) == (None, IDS)
    assert cache.fetch_nearest_cache((str(folder), None, "draft"), IDS) == (None, IDS)
    assert cache.fetch_nearest_cache(key, IDS)[1] == []


def test_what_was_fetched_is_nobody_else_s(make: Make, model: Any, key: object) -> None:
    cache = make()
    cache.insert_cache(key, IDS, a_cache(model, IDS))
    found, _ = cache.fetch_nearest_cache(key, IDS)
    found[0].trim(20)
    mx.eval(model(mx.array([[9, 9]]), cache=found))
    assert rows(cache.fetch_nearest_cache(key, IDS)[0]) == rows(a_cache(model, IDS))


def test_a_cache_takes_the_place_of_its_prefixes(make: Make, model: Any, key: object) -> None:
    cache = make()
    cache.insert_cache(key, IDS[:40], a_cache(model, IDS[:40]))
    cache.insert_cache(key, IDS, a_cache(model, IDS))
    cache.insert_cache(key, IDS, a_cache(model, IDS))
    assert len(cache) == 1
    assert cache.nbytes == sum(one.nbytes for one in a_cache(model, IDS))


def test_at_most_max_size_are_in_ram(make: Make, model: Any, key: object) -> None:
    cache = make(2)
    for ids in OTHERS[:3]:
        cache.insert_cache(key, ids, a_cache(model, ids))
    assert len(cache) == 2


def test_at_most_max_bytes_are_in_ram(make: Make, model: Any, key: object) -> None:
    one = sum(layer.nbytes for layer in a_cache(model, IDS))
    cache = make(10, 2 * one)
    for ids in OTHERS[:4]:
        cache.insert_cache(key, ids, a_cache(model, ids))
    assert (len(cache), cache.nbytes) == (2, 2 * one)


def test_statistics_are_by_type(make: Make, model: Any, key: object) -> None:
    cache = make()
    one = sum(layer.nbytes for layer in a_cache(model, IDS))
    for ids, kind in zip(OTHERS, ["system", "user", "user", "assistant"], strict=False):
        cache.insert_cache(key, ids, a_cache(model, ids), cache_type=kind)
    assert cache.stats_by_type() == {
        "assistant": {"n_sequences": 1, "n_bytes": one},
        "user": {"n_sequences": 2, "n_bytes": 2 * one},
        "system": {"n_sequences": 1, "n_bytes": one},
    }


def test_answers_leave_before_system_prompts(make: Make, model: Any, key: object) -> None:
    cache = make(2)
    for ids, kind in zip(OTHERS, ["system", "assistant", "assistant"], strict=False):
        cache.insert_cache(key, ids, a_cache(model, ids), cache_type=kind)
    stats = cache.stats_by_type()
    assert (stats["system"]["n_sequences"], stats["assistant"]["n_sequences"]) == (1, 1)


def test_trim_to_lets_sequences_leave_by_number_and_by_bytes(
    make: Make, model: Any, key: object
) -> None:
    cache = make()
    one = sum(layer.nbytes for layer in a_cache(model, IDS))
    for ids in OTHERS:
        cache.insert_cache(key, ids, a_cache(model, ids))
    cache.trim_to(n_sequences=4)
    assert len(cache) == 4
    cache.trim_to(n_bytes=2 * one)
    assert (len(cache), cache.nbytes) == (2, 2 * one)
    cache.trim_to(n_sequences=-1)
    assert (len(cache), cache.nbytes) == (0, 0)


# -- what mlx-lm's has forgotten -----------------------------------------------------------------


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


def test_it_is_one_of_mlx_lm_s(home: Path) -> None:
    cache = lru_prompt_cache(home=home)
    assert isinstance(cache, LRUPromptCache)
    cache.close()


def test_what_left_ram_comes_from_disk(home: Path, model: Any, key: object) -> None:
    cache = lru_prompt_cache(home=home, memory="1MB")
    cache.insert_cache(key, IDS, a_cache(model, IDS))
    cache.trim_to(n_sequences=0)
    found, rest = cache.fetch_nearest_cache(key, IDS)
    assert rest == IDS[-1:]
    assert rows(found) == rows(all_but_the_last(model))
    cache.close()


def test_a_restart_forgets_nothing(home: Path, model: Any, key: object) -> None:
    first = lru_prompt_cache(home=home)
    first.insert_cache(key, IDS, a_cache(model, IDS))
    first.close()
    second = lru_prompt_cache(home=home)
    assert second.fetch_nearest_cache(key, [*IDS[:30], 1, 2])[1] == [1, 2]
    assert second.fetch_nearest_cache(key, IDS)[1] == IDS[-1:]
    second.close()


def test_the_longer_of_the_two_prefixes_is_given(home: Path, model: Any, key: object) -> None:
    cache = lru_prompt_cache(home=home)
    cache.insert_cache(key, IDS, a_cache(model, IDS))
    cache.trim_to(n_sequences=0)
    cache.insert_cache(key, IDS[:20], a_cache(model, IDS[:20]))
    assert cache.fetch_nearest_cache(key, IDS)[1] == IDS[-1:]
    assert cache.fetch_nearest_cache(key, IDS[:20])[1] == []
    cache.close()


def test_it_closes_itself_when_nobody_has_it_any_more(home: Path, model: Any, key: object) -> None:
    cache = lru_prompt_cache(home=home)
    cache.insert_cache(key, IDS, a_cache(model, IDS))
    del cache
    again = lru_prompt_cache(home=home)
    assert again.fetch_nearest_cache(key, IDS)[1] == IDS[-1:]
    again.close()


def test_models_take_turns(home: Path, model: Any, key: object, tmp_path: Path) -> None:
    path = str(tiny_llama(tmp_path / "other", seed=2, layers=3))
    other, its_key = load(path)[0], (path, None, None)
    cache = lru_prompt_cache(home=home)
    cache.insert_cache(key, IDS, a_cache(model, IDS))
    cache.insert_cache(its_key, IDS, a_cache(other, IDS))
    cache.trim_to(n_sequences=0)
    for one, its in ((model, key), (other, its_key)):
        found, rest = cache.fetch_nearest_cache(its, IDS)
        assert rest == IDS[-1:]
        assert rows(found) == rows(all_but_the_last(one))
    cache.close()


@pytest.mark.parametrize("name", ["gemma3_text", "qwen3_next", "falcon_h1", "llama4"])
def test_caches_of_any_known_kind_survive_a_restart(home: Path, tmp_path: Path, name: str) -> None:
    path = str(SHAPES[name].made(tmp_path / "model"))
    model, key = load(path)[0], (path, None, None)
    first = lru_prompt_cache(home=home)
    first.insert_cache(key, IDS, a_cache(model, IDS))
    first.close()
    second = lru_prompt_cache(home=home)
    found, rest = second.fetch_nearest_cache(key, [*IDS, 5])
    second.close()
    assert rest == [5]
    after = [model(mx.array([rest]), cache=one) for one in (found, a_cache(model, IDS))]
    assert after[0].tolist() == after[1].tolist()


def test_an_adapter_makes_another_model(
    home: Path, model: Any, folder: Path, key: object, tmp_path: Path
) -> None:
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text("{}")
    cache = lru_prompt_cache(home=home)
    cache.insert_cache(key, IDS, a_cache(model, IDS))
    adapted = (str(folder), str(adapter), None)
    assert cache.fetch_nearest_cache(adapted, IDS) == (None, IDS)
    cache.insert_cache(adapted, IDS, a_cache(model, IDS))
    cache.trim_to(n_sequences=0)
    assert cache.fetch_nearest_cache(adapted, IDS)[1] == IDS[-1:]
    other = (str(tiny_llama(tmp_path / "other", seed=2)), str(adapter), None)
    assert cache.fetch_nearest_cache(other, IDS) == (None, IDS)
    cache.close()


@pytest.mark.parametrize(
    "strange", ["no path", ("/nowhere", None, None), ("a", "b"), ("a", None, "draft"), 7]
)
def test_a_model_that_nobody_knows_the_files_of_is_kept_in_ram_alone(
    home: Path, model: Any, strange: object, caplog: pytest.LogCaptureFixture
) -> None:
    cache = lru_prompt_cache(home=home)
    cache.insert_cache(strange, IDS, a_cache(model, IDS))
    cache.insert_cache(strange, IDS, a_cache(model, IDS))
    assert cache.fetch_nearest_cache(strange, IDS)[1] == []
    cache.trim_to(n_sequences=0)
    assert cache.fetch_nearest_cache(strange, IDS) == (None, IDS)
    assert caplog.text.count("kept in RAM only") == 1
    cache.close()


def test_caches_that_are_not_understood_are_kept_in_ram_alone(
    home: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = str(tiny_llama(tmp_path / "wide", seed=1, heads=2, kv_heads=2))
    model, key = load(path)[0], (path, None, None)
    quantised = [one.to_quantized(32, 8) for one in a_cache(model, IDS)]
    cache = lru_prompt_cache(home=home)
    with caplog.at_level(logging.WARNING):
        cache.insert_cache(key, IDS, quantised)
        cache.insert_cache(key, IDS[:-1], a_cache(model, IDS))  # one row more than ids
    assert cache.fetch_nearest_cache(key, IDS)[1] == []
    cache.trim_to(n_sequences=0)
    assert cache.fetch_nearest_cache(key, IDS) == (None, IDS)
    assert "QuantizedKVCache is not supported" in caplog.text
    assert "60 rows for 59 ids" in caplog.text
    cache.close()


def test_a_damaged_home_leaves_everything_to_ram(
    home: Path, model: Any, key: object, caplog: pytest.LogCaptureFixture
) -> None:
    first = lru_prompt_cache(home=home)
    first.insert_cache(key, IDS, a_cache(model, IDS))
    first.close()
    (home / "catalogue.sqlite3").write_bytes(b"no catalogue" * 1000)
    second = lru_prompt_cache(home=home)
    assert second.fetch_nearest_cache(key, IDS) == (None, IDS)
    second.insert_cache(key, IDS, a_cache(model, IDS))
    assert second.fetch_nearest_cache(key, IDS)[1] == []
    second.close()
    assert "kept in RAM only: home" in caplog.text


def test_a_closed_one_goes_on_in_ram(home: Path, model: Any, key: object) -> None:
    cache = lru_prompt_cache(home=home)
    cache.close()
    cache.insert_cache(key, IDS, a_cache(model, IDS))
    assert cache.fetch_nearest_cache(key, IDS)[1] == []
    cache.trim_to(n_sequences=0)
    assert cache.fetch_nearest_cache(key, IDS) == (None, IDS)


def test_ids_of_images_are_kept_in_ram_alone(home: Path, model: Any, key: object) -> None:
    ids = [*IDS[:-1], "a picture"]
    cache = lru_prompt_cache(home=home)
    cache.insert_cache(key, ids, a_cache(model, IDS))
    assert cache.fetch_nearest_cache(key, ids)[1] == []
    cache.close()


@pytest.mark.parametrize(
    "content", ["", "{", "[]", '{"spec": {"layers": [], "dtype": "x"}, "shape": []}', "\0"]
)
def test_a_damaged_layout_is_a_miss_until_it_is_written_again(
    home: Path, model: Any, key: object, content: str
) -> None:
    first = lru_prompt_cache(home=home)
    first.insert_cache(key, IDS, a_cache(model, IDS))
    first.close()
    (layout,) = home.glob("layouts/*.json")
    layout.write_text(content)
    second = lru_prompt_cache(home=home)
    assert second.fetch_nearest_cache(key, IDS) == (None, IDS)
    second.insert_cache(key, [*IDS, 7], a_cache(model, [*IDS, 7]))
    second.trim_to(n_sequences=0)
    assert second.fetch_nearest_cache(key, IDS)[1] == IDS[-1:]
    second.close()
