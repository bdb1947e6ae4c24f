"""What every model source promises."""

import pytest

from agentcache.domain.errors import ModelError
from agentcache.ports.model_source import ModelSource, Stage


def quiet(_done: int, _total: int | None, _stage: Stage, /) -> None:
    """For models whose coming nobody watches."""


class ModelSourceContract:
    """Subclass it, and override the fixture `source`: a source that lists two models."""

    @pytest.fixture
    def source(self) -> ModelSource:
        """The source under test."""
        raise NotImplementedError("override the fixture `source`")

    def test_what_is_listed_resolves_to_the_listed_folder(self, source: ModelSource) -> None:
        records = source.list()
        assert len(records) == 2
        assert [source.resolve(one.ref, quiet).path for one in records] == [
            one.path for one in records
        ]

    def test_a_model_resolves_to_the_same_folder_each_time(self, source: ModelSource) -> None:
        ref = source.list()[0].ref
        first = source.resolve(ref, quiet)
        assert source.resolve(ref, quiet) == first
        assert first.ref == ref
        assert len(first.digest) == 32

    def test_other_models_have_other_digests(self, source: ModelSource) -> None:
        one, two = (source.resolve(record.ref, quiet) for record in source.list())
        assert one.digest != two.digest

    def test_a_removed_model_is_gone_and_the_other_stays(self, source: ModelSource) -> None:
        gone, stays = source.list()
        assert source.remove(gone.ref) == gone.nbytes
        assert source.list() == (stays,)
        with pytest.raises(ModelError):
            source.resolve(gone.ref, quiet)
        with pytest.raises(ModelError):
            source.remove(gone.ref)

    def test_an_unknown_model_is_an_error_with_a_remedy(self, source: ModelSource) -> None:
        for ask in (lambda: source.resolve("nope", quiet), lambda: source.remove("nope")):
            with pytest.raises(ModelError) as refused:
                ask()
            assert refused.value.ref == "nope"
            assert refused.value.remedy
