"""What only files can suffer: damage, mix-ups, hostile headers, leftovers, a full disk."""

import errno
import json
import os
import stat
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from agentcache.adapters.disk.files import room_for
from agentcache.adapters.disk.segment_file import read_segment, write_segment
from agentcache.adapters.disk.segment_header import MAX_HEADER
from agentcache.adapters.disk.segments import DiskSegmentStore
from agentcache.domain.errors import SegmentCorrupt, SegmentMissing, SegmentUnusable, StoreFull
from agentcache.domain.segment import Segment
from agentcache.domain.tokens import tokens
from agentcache.mapped_memory import MappedMemory
from agentcache.ports.payload import Payload, Tensor
from agentcache.testing import strategies
from agentcache.testing.segment_store import a_payload, a_segment, content
from tests.integration.test_segment_store import disk_store
from tests.limits import file_size_limit, no_more_files

PAYLOAD = a_payload(5)
SEGMENT = a_segment(PAYLOAD)


@pytest.fixture
def store(tmp_path):
    opened = disk_store(tmp_path)
    yield opened
    opened.check_integrity()
    opened.close()


@pytest.fixture
def file(store) -> Path:
    """The file of SEGMENT in `store`."""
    store.put(SEGMENT, PAYLOAD)
    return path_of(store, SEGMENT)


def path_of(store: DiskSegmentStore, segment: Segment) -> Path:
    name = segment.key.hex()
    return store.folder / name[:2] / f"{name}.safetensors"


def header_of(data: bytes) -> dict[str, dict]:
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length])


def with_header(header: object, body: bytes) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + body


def test_any_safetensors_tool_reads_a_segment_and_what_it_is(file):
    with safe_open(file, "numpy") as opened:
        assert opened.metadata() | {"checksum": ""} == {
            "format": "agentcache-1",
            "root": strategies.ROOT.hex(),
            "key": SEGMENT.key.hex(),
            "parent": "",
            "start": "0",
            "stop": "5",
            "codec": "native",
            "layout": "row,layer,head*dim",
            "checksum": "",
        }
        assert opened.get_tensor("g0.k").tobytes() == bytes(PAYLOAD.tensors["g0.k"].data)
        assert opened.get_tensor("g0.k").shape == (5, 1, 4)
        assert opened.get_tensor("g0.k.x").shape == (0, 4)


def test_a_file_cut_short_at_any_byte_is_corrupt(store, file):
    data = file.read_bytes()
    for length in range(len(data)):
        file.write_bytes(data[:length])
        with pytest.raises(SegmentCorrupt):
            store.read(SEGMENT)
    file.write_bytes(data)
    assert content(store.read(SEGMENT)) == content(PAYLOAD)


def test_a_file_with_something_after_its_end_is_corrupt(store, file):
    before = file.read_bytes()
    file.write_bytes(before + b"\0")
    with pytest.raises(SegmentCorrupt, match="a file of"):
        store.read(SEGMENT)
    file.write_bytes(before)


def test_one_wrong_bit_anywhere_makes_a_file_corrupt(store, file):
    data = bytearray(file.read_bytes())
    for position in range(len(data)):
        for bit in range(8):
            data[position] ^= 1 << bit
            file.write_bytes(data)
            with pytest.raises(SegmentCorrupt):
                store.read(SEGMENT)
            data[position] ^= 1 << bit


@pytest.mark.parametrize("helpers", [0, 1, 3])
def test_a_wrong_bit_in_any_block_of_a_large_file_is_found_by_any_number_of_threads(
    tmp_path, helpers
):
    store = DiskSegmentStore.open(tmp_path / "s", tmp_path / "q", helpers=helpers)
    payload = a_payload(2000, width=1250)
    segment = a_segment(payload)
    store.put(segment, payload)
    assert content(store.read(segment)) == content(payload)
    path = path_of(store, segment)
    for position in range(1000, path.stat().st_size, 999_983):
        flip(path, position)
        with pytest.raises(SegmentCorrupt, match="checksum"):
            store.read(segment)
        flip(path, position)
    store.close()


def test_what_is_read_lies_in_memory_that_is_used_again_and_not_before_it_is_let_go(tmp_path):
    memory = MappedMemory.of(64 << 20, reserve=16 << 20)
    store = DiskSegmentStore.open(tmp_path / "s", tmp_path / "q", helpers=0, memory=memory)
    payloads = [a_payload(500 + n, width=1250) for n in range(3)]
    segments = [a_segment(payload) for payload in payloads]
    for segment, payload in zip(segments, payloads, strict=True):
        store.put(segment, payload)
    while memory.prepare():
        pass
    before = memory.spare
    first = store.read(segments[0])
    assert memory.spare <= before - first.nbytes
    second = store.read(segments[1])
    del first
    third = store.read(segments[2])
    assert content(second) == content(payloads[1])
    assert content(third) == content(payloads[2])
    memory.check_integrity()
    del second, third
    memory.settle()
    assert memory.spare == before
    store.close()


def test_memory_is_made_ready_when_something_was_put(tmp_path):
    memory = MappedMemory.of(64 << 20)
    store = DiskSegmentStore.open(tmp_path / "s", tmp_path / "q", memory=memory)
    store.put(SEGMENT, PAYLOAD)
    store.close()
    assert memory.spare > 0


def flip(path: Path, position: int) -> None:
    with path.open("r+b") as file:
        file.seek(position)
        byte = file.read(1)[0]
        file.seek(position)
        file.write(bytes([byte ^ 1]))


def test_files_under_each_others_names_are_corrupt(store, file):
    other = a_segment(PAYLOAD, first=100)
    store.put(other, PAYLOAD)
    there = path_of(store, other)
    here, elsewhere = file.read_bytes(), there.read_bytes()
    file.write_bytes(elsewhere)
    there.write_bytes(here)
    for segment in (SEGMENT, other):
        with pytest.raises(SegmentCorrupt, match="holds"):
            store.read(segment)


def test_the_same_tokens_of_another_model_are_corrupt(store, file):
    child = Segment.following(strategies.ROOT, SEGMENT.key, 5, SEGMENT.ids, PAYLOAD.nbytes)
    foreign = Segment.following(strategies.OTHER_ROOT, SEGMENT.key, 5, SEGMENT.ids, PAYLOAD.nbytes)
    assert child.key == foreign.key
    store.put(child, PAYLOAD)
    with pytest.raises(SegmentCorrupt, match="holds"):
        store.read(foreign)


def test_a_safetensors_file_of_somebody_else_is_corrupt(store, file):
    size = file.stat().st_size
    save_file({"g0.k": np.zeros((5, 1, 4), np.float32)}, file)
    with pytest.raises(SegmentCorrupt, match="format"):
        store.read(SEGMENT)
    file.write_bytes(bytes(size))


def test_a_file_of_a_newer_format_is_corrupt(store, file):
    data = file.read_bytes()
    file.write_bytes(data.replace(b"agentcache-1", b"agentcache-2"))
    with pytest.raises(SegmentCorrupt, match="format agentcache-2, not agentcache-1"):
        store.read(SEGMENT)


def test_a_link_is_not_followed(store, file, tmp_path):
    moved = file.rename(tmp_path / "elsewhere")
    file.symlink_to(moved)
    with pytest.raises(SegmentCorrupt):
        store.read(SEGMENT)
    file.unlink()
    moved.rename(file)


def test_a_pipe_or_a_folder_in_place_of_a_file_is_corrupt(store, file):
    data = file.read_bytes()
    file.unlink()
    os.mkfifo(file)
    with pytest.raises(SegmentCorrupt, match="regular"):
        store.read(SEGMENT)
    file.unlink()
    file.mkdir()
    with pytest.raises(SegmentCorrupt):
        store.read(SEGMENT)
    file.rmdir()
    file.write_bytes(data)


def test_a_folder_in_place_of_a_file_is_swept(tmp_path):
    store = disk_store(tmp_path)
    path_of(store, SEGMENT).mkdir(parents=True)
    (path_of(store, SEGMENT) / "file").write_bytes(b"x")
    store = disk_store(tmp_path)
    assert store.sweep([]) == 1
    assert store.nbytes() == 0
    assert not path_of(store, SEGMENT).exists()


def test_a_file_that_cannot_be_opened_just_now_is_a_miss_but_not_corrupt(store, file):
    with no_more_files(), pytest.raises(SegmentUnusable, match="open files") as caught:
        store.read(SEGMENT)
    assert type(caught.value) is SegmentUnusable


_ENTRY = {"dtype": "F32", "shape": [5, 1, 4], "data_offsets": [0, 80]}


@pytest.mark.parametrize(
    "header",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'{"a": 1}',
        b'{"__metadata__": {"format": 1}}',
        b"[" * 100_000,
        b'{"a":' * 50_000 + b"1" + b"}" * 50_000,
        b'{"a\xff": {}}',
        {"a": _ENTRY | {"dtype": "F999"}},
        {"a": _ENTRY | {"shape": [-5, -1, 4]}},
        {"a": _ENTRY | {"shape": [2**63, 2**63, 0]}},
        {"a": _ENTRY | {"shape": [10**18] * 40_000}},
        {"a": _ENTRY | {"data_offsets": [0, 2**63]}},
        {"a": _ENTRY | {"data_offsets": [8, 88]}},
        {"a": _ENTRY | {"data_offsets": [80, 0]}},
        {"a": _ENTRY | {"data_offsets": [0]}},
        {"a": _ENTRY, "b": _ENTRY},
        {"a": _ENTRY | {"more": 1}},
    ],
    ids=range(19),
)
def test_a_header_that_does_not_add_up_is_corrupt(store, file, header):
    before = file.read_bytes()
    data = with_header(header, bytes(80))
    file.write_bytes(data)
    with pytest.raises(SegmentCorrupt, match="header"):
        store.read(SEGMENT)
    file.write_bytes(before)


@pytest.mark.parametrize("length", [MAX_HEADER + 1, 2**32, 2**63 - 1, 2**64 - 1])
def test_a_header_of_absurd_length_allocates_nothing(store, file, length):
    data = file.read_bytes()
    file.write_bytes(length.to_bytes(8, "little") + data[8:])
    os.truncate(file, 1 << 40)
    assert peak_of_reading(store) < 1 << 20
    file.write_bytes(data)


def test_tensors_of_absurd_size_allocate_nothing(store, file):
    data = file.read_bytes()
    header = header_of(data)
    fields = {name: one for name, one in header.items() if name == "__metadata__"}
    size = 1 << 40
    fields["g0.k"] = {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}
    head = with_header(fields, b"")
    file.write_bytes(head)
    os.truncate(file, len(head) + size)
    assert peak_of_reading(store) < 1 << 20
    file.write_bytes(data)


def peak_of_reading(store: DiskSegmentStore) -> int:
    tracemalloc.start()
    try:
        with pytest.raises(SegmentCorrupt):
            store.read(SEGMENT)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_a_header_that_could_not_be_read_again_is_not_written(tmp_path):
    tensors = {f"s{n}.{'x' * 90}": Tensor("U8", (0,), memoryview(b"")) for n in range(10_000)}
    with pytest.raises(ValueError, match="a header of"):
        write_segment(
            tmp_path / "f", a_segment(Payload("native", 1, {})), Payload("native", 1, tensors)
        )
    assert list(tmp_path.iterdir()) == []


def test_leftovers_are_counted_and_swept(store, file, tmp_path):
    shard = file.parent
    (shard / f".{file.name}.0123.tmp").write_bytes(b"half")
    other = store.folder / ("00" if shard.name != "00" else "11")
    other.mkdir()
    (other / file.name).write_bytes(b"in the wrong folder")
    (shard / "notes.txt").write_bytes(b"not ours")
    size = file.stat().st_size
    opened = disk_store(tmp_path)
    assert opened.nbytes() == size + len(b"half") + len(b"in the wrong folder")
    assert opened.sweep([SEGMENT.key]) == 2
    assert opened.nbytes() == size
    assert sorted(path.name for path in shard.iterdir()) == [file.name, "notes.txt"]
    assert content(opened.read(SEGMENT)) == content(PAYLOAD)
    opened.close()


def test_the_oldest_quarantined_file_goes_first_also_after_reopening(tmp_path):
    store = disk_store(tmp_path)
    size = 0
    for first in range(12):
        segment = a_segment(PAYLOAD, first)
        size = store.put(segment, PAYLOAD)
        store.quarantine(segment.key)
        store = disk_store(tmp_path, quarantine_bytes=3 * size + 50)
    kept = sorted((tmp_path / "quarantine").iterdir())
    newest = [a_segment(PAYLOAD, first).key.hex() for first in (9, 10, 11)]
    assert [path.name[13:77] for path in kept] == newest
    assert store.nbytes() == sum(path.stat().st_size for path in kept)


@pytest.mark.parametrize("umask", [0, 0o777])
def test_files_are_for_their_owner_alone_whatever_the_umask_is(tmp_path, umask):
    before = os.umask(umask)
    try:
        store = disk_store(tmp_path)
        store.put(SEGMENT, PAYLOAD)
    finally:
        os.umask(before)
    path = path_of(store, SEGMENT)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    for folder in (path.parent, store.folder, tmp_path / "quarantine"):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_a_full_disk_leaves_nothing_behind_and_what_was_there_readable(store, file, tmp_path):
    payload = a_payload(200)
    segment, taken = a_segment(payload), store.nbytes()
    with file_size_limit(2000), pytest.raises(StoreFull) as caught:
        store.put(segment, payload)
    assert caught.value.needed == payload.nbytes
    assert store.nbytes() == taken
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [file]
    with pytest.raises(SegmentMissing):
        store.read(segment)
    assert content(store.read(SEGMENT)) == content(PAYLOAD)
    store.put(segment, payload)
    assert content(store.read(segment)) == content(payload)


def test_a_full_disk_leaves_the_former_file_when_it_was_to_be_replaced(store):
    payload = a_payload(200)
    segment = a_segment(payload)
    store.put(segment, payload)
    with file_size_limit(2000), pytest.raises(StoreFull):
        store.put(segment, payload)
    assert content(store.read(segment)) == content(payload)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_every_way_to_be_out_of_room_is_a_full_store(number):
    with pytest.raises(StoreFull), room_for(7):
        raise OSError(number, os.strerror(number))


def test_any_other_error_of_the_disk_stays_what_it_is():
    with pytest.raises(OSError, match="Input/output"), room_for(7):
        raise OSError(errno.EIO, os.strerror(errno.EIO))


def test_a_file_that_shrinks_while_it_is_read_is_corrupt(store, file, monkeypatch):
    real = os.preadv

    def shrinking(fd, buffers, offset):
        os.truncate(file, offset)
        return real(fd, buffers, offset)

    data = file.read_bytes()
    monkeypatch.setattr(os, "preadv", shrinking)
    with pytest.raises(SegmentCorrupt, match="became shorter"):
        read_segment(file, SEGMENT)
    file.write_bytes(data)


def test_tokens_that_do_not_give_the_key_are_corrupt_before_anything_is_read(store):
    wrong = Segment(bytes(32), strategies.ROOT, None, 0, tokens([1]), 4)
    path_of(store, wrong).parent.mkdir()
    path_of(store, wrong).write_bytes(b"")
    with pytest.raises(SegmentCorrupt, match="key is not that of its tokens"):
        store.read(wrong)
    store.sweep([])
