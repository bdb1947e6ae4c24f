"""Segments: immutable runs of rows, named by what they hold."""

from hashlib import blake2b

from attrs import evolve, field, frozen

from agentcache.domain.tokens import Tokens, to_bytes

KEY_BYTES = 32
FORMAT_VERSION = 1


@frozen
class Segment:
    """The rows of tokens [start, stop) that follow `parent` at its row `start`.

    `parent` is None for a segment that follows the root directly (then `start` is 0). `nbytes` is
    what its encoded rows take. `follows` is the key of the segment that it was made to follow, if
    that has been merged into its parent since: the key of a segment never changes.
    """

    key: bytes
    root: bytes
    parent: bytes | None
    start: int
    ids: "Tokens[int]" = field(eq=False, repr=False)
    nbytes: int = 0
    follows: bytes | None = None

    @property
    def origin(self) -> bytes | None:
        """The parent that its key was made of."""
        return self.follows or self.parent

    @property
    def is_sound(self) -> bool:
        """Whether its key is that of what it says."""
        return self.key == segment_key(self.root, self.origin, self.start, self.ids)

    @property
    def stop(self) -> int:
        """The position after its last token."""
        return self.start + len(self.ids)

    def __len__(self) -> int:
        return len(self.ids)

    @classmethod
    def following(
        cls, root: bytes, parent: bytes | None, start: int, ids: "Tokens[int]", nbytes: int
    ) -> "Segment":
        """The segment of `ids` that leaves `parent` (or the root) at row `start`."""
        if not len(ids):
            raise ValueError("a segment holds at least one token")
        if (parent is None) != (start == 0):
            raise ValueError(f"a segment at row {start} cannot follow {parent!r}")
        return cls(segment_key(root, parent, start, ids), root, parent, start, ids, nbytes)

    def adopted_by(self, parent: bytes) -> "Segment":
        """The same segment, after its parent was merged into `parent`."""
        return evolve(self, parent=parent, follows=self.origin)


def segment_key(root: bytes, parent: bytes | None, start: int, ids: "Tokens[int]") -> bytes:
    """The content address of a segment: blake2b(parent key, parent row, token ids)."""
    digest = blake2b(parent or root, digest_size=KEY_BYTES)
    digest.update(start.to_bytes(8, "little"))
    digest.update(to_bytes(ids))
    return digest.digest()


def root_key(
    model_digest: bytes, dtype: str, epoch: int, codec: str, tenant: str, salt: bytes = b""
) -> bytes:
    """The key that a lineage starts from.

    Everything that changes what rows mean goes in, each part with its length, so that no two
    different tuples hash the same bytes.
    """
    digest = blake2b(digest_size=KEY_BYTES, key=salt[:64])
    numbers = f"{FORMAT_VERSION}/{epoch}".encode()
    for part in (
        b"agentcache",
        numbers,
        model_digest,
        dtype.encode(),
        codec.encode(),
        tenant.encode(),
    ):
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.digest()
