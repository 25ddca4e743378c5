-- The log: one row a change. The revision is the resourceVersion of what it holds.
CREATE TABLE log (
    revision INTEGER PRIMARY KEY,
    key      TEXT NOT NULL,
    created  INTEGER NOT NULL,          -- revision at which this life of the key began
    deleted  INTEGER NOT NULL,          -- 1: the key ended here, and value is its last value
    value    BLOB NOT NULL
);
CREATE INDEX log_by_key ON log (key, revision);

-- What is alive: the newest revision of each key.
CREATE TABLE current (
    key      TEXT PRIMARY KEY,
    revision INTEGER NOT NULL
) WITHOUT ROWID;

-- Small facts of the store itself: 'compacted', 'reserved'.
CREATE TABLE fact (
    name  TEXT PRIMARY KEY,
    value INTEGER NOT NULL
) WITHOUT ROWID;
INSERT INTO fact VALUES ('compacted', 0), ('reserved', 0);
