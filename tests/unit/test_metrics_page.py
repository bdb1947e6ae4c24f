"""The page about metrics tells of all of them, and of no others."""

import re
from pathlib import Path

from agentcache.adapters.prometheus.metrics import PrometheusTelemetry
from tests.world import World

PAGE = Path(__file__).parents[2] / "docs" / "metrics.md"
ROW = re.compile(r"^\| `(agentcache_\w+)(?:\{(\w+)\})?` \| (\w+) \| ([\w ]+) \| (.+) \|$", re.M)


def _registered() -> set[tuple[str, str, str]]:
    """Name, label and type of every metric, after a world has told its levels."""
    telemetry = PrometheusTelemetry()
    with World(telemetry=telemetry) as world:  # type: ignore[arg-type]
        telemetry.gauges(world.conductor.levels())
    found = set()
    for family in telemetry.registry.collect():
        labels = {name for sample in family.samples for name in sample.labels} - {"le"}
        name = f"{family.name}_total" if family.type == "counter" else family.name
        found.add((name, "".join(labels), family.type))
    return found


def test_every_metric_is_on_the_page_with_its_label_and_type() -> None:
    described = {(name, label, kind) for name, label, kind, *_ in ROW.findall(PAGE.read_text())}
    assert described == _registered()


def test_every_value_of_a_label_is_on_the_page() -> None:
    told = {name: text for name, _, _, _, text in ROW.findall(PAGE.read_text())}
    telemetry = PrometheusTelemetry()
    for family in telemetry.registry.collect():
        for sample in family.samples:
            values = {value for name, value in sample.labels.items() if name not in ("le", "tier")}
            name = f"{family.name}_total" if family.type == "counter" else family.name
            assert all(f"`{value}`" in told[name] for value in values), sample


def test_queries_are_of_metrics_that_there_are() -> None:
    names = {name for name, *_ in ROW.findall(PAGE.read_text())}
    queried = re.findall(r"agentcache_\w+", PAGE.read_text().split("## Questions")[1])
    assert queried
    assert {name.removesuffix("_bucket") for name in queried} <= names
