"""The catalogue's tables. Texts are BLOBs of UTF-8 that may hold NULs and lone surrogates."""

APPLICATION = 0x41474343
VERSION = 3

PRAGMAS = (
    # One process owns a home, so the index of the log needs no shared memory file.
    "PRAGMA locking_mode = EXCLUSIVE",
    "PRAGMA journal_mode = WAL",
    "PRAGMA synchronous = FULL",
    "PRAGMA fullfsync = ON",
    "PRAGMA checkpoint_fullfsync = ON",
    "PRAGMA foreign_keys = ON",
    f"PRAGMA journal_size_limit = {16 << 20}",
)

# What the conversations were, as clients told them: new in version 2. `digest` is as in `span`.
_CONVERSATIONS = (
    """CREATE TABLE message (
        session INTEGER NOT NULL REFERENCES session ON DELETE CASCADE,
        position INTEGER NOT NULL,
        digest BLOB NOT NULL,
        data BLOB NOT NULL,
        PRIMARY KEY (session, position)
    ) STRICT, WITHOUT ROWID""",
    """CREATE TABLE tools (
        session INTEGER PRIMARY KEY REFERENCES session ON DELETE CASCADE,
        text BLOB NOT NULL
    ) STRICT""",
)

# References are checked when a transaction ends, whatever the order within it.
TABLES = (
    "CREATE TABLE home (salt BLOB NOT NULL) STRICT",
    """CREATE TABLE segment (
        key BLOB PRIMARY KEY,
        root BLOB NOT NULL,
        parent BLOB REFERENCES segment DEFERRABLE INITIALLY DEFERRED,
        start INTEGER NOT NULL,
        nbytes INTEGER NOT NULL,
        ids BLOB NOT NULL,
        follows BLOB
    ) STRICT""",
    "CREATE INDEX segment_parent ON segment (parent)",
    """CREATE TABLE session (
        id INTEGER PRIMARY KEY,
        tenant BLOB NOT NULL,
        root BLOB NOT NULL,
        name BLOB NOT NULL,
        segment BLOB REFERENCES segment DEFERRABLE INITIALLY DEFERRED,
        row INTEGER,
        tools_digest BLOB NOT NULL,
        parent BLOB,
        pinned INTEGER NOT NULL,
        created REAL NOT NULL,
        used REAL NOT NULL,
        generation INTEGER NOT NULL,
        expires REAL,
        hits INTEGER NOT NULL DEFAULT 0,
        prompt INTEGER NOT NULL DEFAULT 0,
        cached INTEGER NOT NULL DEFAULT 0,
        trace BLOB,
        UNIQUE (tenant, root, name)
    ) STRICT""",
    "CREATE INDEX session_segment ON session (segment)",
    # `digest` is that of all spans up to this one: equal digests mean equal beginnings.
    """CREATE TABLE span (
        session INTEGER NOT NULL REFERENCES session ON DELETE CASCADE,
        position INTEGER NOT NULL,
        digest BLOB NOT NULL,
        kind TEXT NOT NULL,
        role BLOB NOT NULL,
        text BLOB NOT NULL,
        ids BLOB NOT NULL,
        PRIMARY KEY (session, position)
    ) STRICT, WITHOUT ROWID""",
    *_CONVERSATIONS,
)

# What makes a catalogue of the version before one of this version.
UPGRADES = {
    2: (
        "ALTER TABLE session ADD COLUMN expires REAL",
        "ALTER TABLE session ADD COLUMN hits INTEGER NOT NULL DEFAULT 0",
        "ALTER TABLE session ADD COLUMN prompt INTEGER NOT NULL DEFAULT 0",
        "ALTER TABLE session ADD COLUMN cached INTEGER NOT NULL DEFAULT 0",
        "ALTER TABLE segment ADD COLUMN follows BLOB",
        *_CONVERSATIONS,
    ),
    3: ("ALTER TABLE session ADD COLUMN trace BLOB",),
}
