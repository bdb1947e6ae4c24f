"""Whose rows are whose: a model, a tenant and a codec never take those of another."""

from agentcache.domain.request import Tier
from tests.frail import CountingCodec
from tests.talks import Talk
from tests.world import World

LONG = "tell " * 40


class Renamed(CountingCodec):
    """The same codec, under another name."""

    name = "renamed"


def test_a_model_never_takes_the_rows_of_another_of_its_shape() -> None:
    with World() as world:
        assert world.say(Talk("ada"), LONG).admitted.cached == 0
        world.digest = b"other"
        world.restart()
        said = world.say(Talk("ada"), LONG)
        assert (said.admitted.cached, said.admitted.tier) == (0, Tier.NONE)
        world.rest_hot()
        world.digest = b"memory"
        world.restart()
        assert world.say(Talk("ada"), LONG).admitted.cached > 0


def test_a_tenant_never_takes_the_rows_of_another() -> None:
    with World() as world:
        world.say(Talk("ada"), LONG)
        said = world.say(Talk("ada", tenant="other"), LONG)
        assert (said.admitted.cached, said.admitted.tier) == (0, Tier.NONE)


def test_a_codec_never_takes_the_rows_of_another() -> None:
    with World() as world:
        world.say(Talk("ada"), LONG)
        root, world.codec = world.conductor.root("default"), Renamed()
        world.restart()
        assert world.conductor.root("default") != root
        said = world.say(Talk("ada"), LONG)
        assert (said.admitted.cached, said.admitted.tier) == (0, Tier.NONE)
