"""The store thread: one change after another, each wholly or not at all."""

import threading
from collections.abc import Iterator
from concurrent.futures import Future

import pytest
from attrs import evolve

from agentcache.domain.errors import CommitInDoubt, HomeError, StoreFull
from agentcache.domain.segment import Segment
from agentcache.domain.tokens import tokens
from agentcache.ports.payload import Payload, Tensor
from agentcache.ports.session_store import Commit
from agentcache.writer import Job, Writer
from tests.frail import Disk
from tests.world import PATIENCE

ROOT = bytes(range(32))


def segment(first: int, rows: int = 10) -> Segment:
    return Segment.following(ROOT, None, 0, tokens(range(first, first + rows)), rows)


def payload(one: Segment) -> Payload:
    data = memoryview(bytes(len(one)))
    return Payload("native", len(one), {"t": Tensor("U8", (len(one),), data)})


def adding(*segments: Segment) -> tuple[Job, "Future[Exception | None]"]:
    """A job that adds `segments`, and what came of it."""
    outcome: Future[Exception | None] = Future()
    payloads = tuple((one, payload(one)) for one in segments)
    return Job(Commit(add=segments), payloads, done=outcome.set_result), outcome


def in_home(disk: Disk) -> set[bytes]:
    """What the catalogue knows, each with its payload."""
    known = {one.key for one in disk.sessions.reopened().load().segments}
    assert known == disk.segments._kept.keys()
    return known


@pytest.fixture
def disk() -> Disk:
    return Disk()


@pytest.fixture
def writer(disk: Disk) -> Iterator[Writer]:
    writer = Writer(disk, disk, most_waiting_bytes=15)
    writer.open()
    yield writer
    writer.close()


def test_opening_tells_what_the_home_holds_and_its_secret(disk: Disk) -> None:
    disk.sessions.commit(Commit(add=(segment(0),)))
    writer = Writer(disk, disk)
    catalogue, salt = writer.open()
    assert (catalogue.segments, salt) == ((segment(0),), disk.sessions.salt())
    writer.close()


def test_opening_sweeps_payloads_that_no_commit_speaks_of(disk: Disk) -> None:
    disk.segments.put(segment(0), payload(segment(0)))
    writer = Writer(disk, disk)
    writer.open()
    writer.close()
    assert disk.nbytes() == 0


def test_a_home_that_cannot_be_read_cannot_be_opened_and_is_closed_again(disk: Disk) -> None:
    disk.fail("load", HomeError("here", "it is damaged"))
    writer = Writer(disk, disk)
    with pytest.raises(HomeError):
        writer.open()
    writer.close()
    with pytest.raises(ValueError, match="closed"):
        disk.sessions.load()


def test_payloads_are_there_before_the_commit_that_speaks_of_them(
    disk: Disk, writer: Writer
) -> None:
    disk.fail("commit", OSError())
    job, outcome = adding(segment(0))
    with disk.writes:
        writer.submit(job)
        assert not disk.written
    assert isinstance(outcome.result(PATIENCE), OSError)
    assert disk.written == [segment(0)]


def test_jobs_are_done_in_the_order_in_which_they_were_asked_for(
    disk: Disk, writer: Writer
) -> None:
    with disk.writes:
        first, added = adding(segment(0, 5))
        writer.submit(first)
        writer.submit(Job(Commit(drop=(segment(0, 5).key,))))
        again, last = adding(segment(0, 5))
        writer.submit(again)
    assert (added.result(PATIENCE), last.result(PATIENCE)) == (None, None)
    assert in_home(disk) == {segment(0, 5).key}


def test_whoever_asks_waits_while_too_many_bytes_are_waiting(disk: Disk, writer: Writer) -> None:
    submitted = threading.Event()
    job, outcome = adding(segment(0, 16))
    more, last = adding(segment(50))

    def submit() -> None:
        writer.submit(more)
        submitted.set()

    with disk.writes:
        writer.submit(job)
        assert writer.waiting_bytes == 16
        asking = threading.Thread(target=submit)
        asking.start()
        while not submitted.is_set() and not writer._changed._waiters:  # type: ignore[attr-defined]
            asking.join(0.001)
        assert not submitted.is_set()
    assert (outcome.result(PATIENCE), last.result(PATIENCE)) == (None, None)
    asking.join()
    assert writer.waiting_bytes == 0


def test_closing_does_first_what_was_asked_for(disk: Disk, writer: Writer) -> None:
    with disk.writes:
        for first in range(0, 50, 5):
            writer.submit(adding(segment(first, 1))[0])
    writer.close()
    assert len(in_home(disk)) == 10


def test_what_is_asked_for_after_the_end_is_refused_through_its_done(writer: Writer) -> None:
    writer.close()
    job, outcome = adding(segment(0))
    writer.submit(job)
    assert isinstance(outcome.result(0), RuntimeError)


def test_of_a_job_that_fails_nothing_is_left(disk: Disk, writer: Writer) -> None:
    disk.segments.capacity = 15
    job, outcome = adding(segment(0), segment(50))
    writer.submit(job)
    assert isinstance(outcome.result(PATIENCE), StoreFull)
    assert in_home(disk) == set()
    assert disk.nbytes() == 0


def test_of_a_commit_that_fails_no_payload_is_left(disk: Disk, writer: Writer) -> None:
    disk.fail("commit", OSError("no"))
    job, outcome = adding(segment(0))
    writer.submit(job)
    assert isinstance(outcome.result(PATIENCE), OSError)
    assert disk.nbytes() == 0


def test_the_thread_goes_on_after_a_job_that_failed(disk: Disk, writer: Writer) -> None:
    disk.fail("put", OSError("no"))
    writer.submit(adding(segment(0))[0])
    job, outcome = adding(segment(50))
    writer.submit(job)
    assert outcome.result(PATIENCE) is None
    assert in_home(disk) == {segment(50).key}


def test_a_payload_that_cannot_be_deleted_does_not_undo_the_commit(
    disk: Disk, writer: Writer
) -> None:
    writer.submit(adding(segment(0))[0])
    disk.fail("delete", OSError("no"))
    outcome: Future[Exception | None] = Future()
    writer.submit(Job(Commit(drop=(segment(0).key,)), done=outcome.set_result))
    assert outcome.result(PATIENCE) is None
    assert disk.sessions.load().segments == ()
    assert disk.nbytes() == 10  # until the next time it is opened


def test_corrupt_payloads_are_set_aside_and_the_others_deleted(disk: Disk, writer: Writer) -> None:
    writer.submit(adding(segment(0), segment(50, 5))[0])
    keys = (segment(0).key, segment(50).key)
    writer.submit(Job(Commit(drop=(segment(0).key, segment(50, 5).key)), corrupt=keys[:1]))
    writer.close()
    assert in_home(disk) == set()
    assert disk.nbytes() == 10  # in quarantine


def test_payloads_of_a_commit_in_doubt_stay_until_another_commit_is_made(
    disk: Disk, writer: Writer
) -> None:
    disk.fail("commit", CommitInDoubt(OSError("no")))
    job, outcome = adding(segment(0))
    writer.submit(job)
    assert isinstance(outcome.result(PATIENCE), OSError)
    assert disk.nbytes() == 10
    writer.submit(Job(Commit(drop=(b"nothing",))))  # it may change nothing, and say nothing
    done: Future[Exception | None] = Future()
    writer.submit(Job(Commit(), done=done.set_result))
    assert done.result(PATIENCE) is None
    assert disk.nbytes() == 10
    job, outcome = adding(segment(50, 5))
    writer.submit(job)
    writer.close()
    assert disk.nbytes() == 5


def test_a_commit_in_doubt_that_is_made_again_keeps_its_payloads(
    disk: Disk, writer: Writer
) -> None:
    disk.fail("commit", CommitInDoubt(OSError("no")))
    writer.submit(adding(segment(0))[0])
    writer.submit(adding(segment(0))[0])
    writer.close()
    assert in_home(disk) == {segment(0).key}
    assert disk.nbytes() == 10


def test_idle_jobs_wait_for_all_others(disk: Disk, writer: Writer) -> None:
    with disk.writes:
        writer.submit(adding(segment(0, 3))[0])
        writer.submit(evolve(adding(segment(50, 3))[0], idle=True))
        writer.submit(adding(segment(100, 3))[0])
        done: Future[Exception | None] = Future()
        writer.submit(Job(Commit(), idle=True, done=done.set_result))
    assert done.result(PATIENCE) is None
    assert disk.written[-1].key == segment(50, 3).key


def test_idle_jobs_that_have_not_begun_are_too_late_at_the_end(disk: Disk, writer: Writer) -> None:
    with disk.writes:
        writer.submit(adding(segment(0, 3))[0])
        job, outcome = adding(segment(50, 3))
        writer.submit(evolve(job, idle=True))
        closing = threading.Thread(target=writer.close)
        closing.start()
        assert isinstance(outcome.result(PATIENCE), RuntimeError)
    closing.join()
    assert in_home(disk) == {segment(0, 3).key}


def test_an_idle_job_that_fails_takes_nothing_away_that_was_committed_before_it_began(
    disk: Disk, writer: Writer
) -> None:
    idle, outcome = adding(segment(0, 3))
    with disk.writes:
        writer.submit(adding(segment(50, 3))[0])
        writer.submit(evolve(idle, commit=Commit(), idle=True))
        writer.submit(adding(segment(0, 3))[0])
        disk.fail("put", [None, None, OSError("no")])  # type: ignore[list-item]
    assert isinstance(outcome.result(PATIENCE), OSError)
    assert in_home(disk) == {segment(0, 3).key, segment(50, 3).key}
    writer.submit(Job(Commit(drop=(segment(0, 3).key,))))
    writer.close()
    assert in_home(disk) == {segment(50, 3).key}
