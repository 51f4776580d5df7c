/**
 * The store's schema as migrations: entry n brings a database from `user_version` n to n + 1. Entries are never edited once
 * released, only added. Times are milliseconds since the epoch.
 */
export const migrations: readonly string[] = [
  `
  CREATE TABLE repositories (
    id TEXT PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    clone_url TEXT NOT NULL,
    secret TEXT NOT NULL,
    next_build_number INTEGER NOT NULL DEFAULT 1,
    created_at_ms INTEGER NOT NULL
  ) STRICT;

  CREATE TABLE deliveries (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    repository_id TEXT NOT NULL REFERENCES repositories ON DELETE CASCADE,
    forge TEXT NOT NULL,
    forge_delivery_id TEXT NOT NULL,
    event TEXT NOT NULL,
    headers TEXT NOT NULL,
    body BLOB NOT NULL,
    trigger TEXT,
    status TEXT NOT NULL,
    reason TEXT,
    tries INTEGER NOT NULL DEFAULT 0,
    received_at_ms INTEGER NOT NULL,
    processed_at_ms INTEGER,
    UNIQUE (repository_id, forge_delivery_id)
  ) STRICT;
  CREATE INDEX deliveries_pending ON deliveries (seq) WHERE status = 'pending';

  CREATE TABLE builds (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    repository_id TEXT NOT NULL REFERENCES repositories ON DELETE CASCADE,
    number INTEGER NOT NULL,
    delivery_seq INTEGER NOT NULL UNIQUE REFERENCES deliveries ON DELETE CASCADE,
    event TEXT NOT NULL,
    title TEXT,
    author TEXT,
    rerun_of TEXT,
    status TEXT NOT NULL,
    reason TEXT,
    diagnostics TEXT,
    version INTEGER NOT NULL DEFAULT 1,
    cancel_reason TEXT,
    created_at_ms INTEGER NOT NULL,
    started_at_ms INTEGER,
    finished_at_ms INTEGER,
    UNIQUE (repository_id, number)
  ) STRICT;
  CREATE INDEX builds_active ON builds (seq) WHERE finished_at_ms IS NULL;

  CREATE TABLE jobs (
    id INTEGER PRIMARY KEY,
    build_id TEXT NOT NULL REFERENCES builds (id) ON DELETE CASCADE,
    position INTEGER NOT NULL,
    name TEXT NOT NULL,
    spec TEXT NOT NULL,
    status TEXT NOT NULL,
    reason TEXT,
    version INTEGER NOT NULL DEFAULT 1,
    started_at_ms INTEGER,
    finished_at_ms INTEGER,
    UNIQUE (build_id, position),
    UNIQUE (build_id, name)
  ) STRICT;

  CREATE TABLE attempts (
    id TEXT PRIMARY KEY,
    build_id TEXT NOT NULL REFERENCES builds (id) ON DELETE CASCADE,
    job_id INTEGER NOT NULL REFERENCES jobs ON DELETE CASCADE,
    ordinal INTEGER NOT NULL,
    n INTEGER NOT NULL,
    pool TEXT NOT NULL,
    status TEXT NOT NULL,
    reason TEXT,
    agent TEXT,
    token_hash BLOB,
    lease_until_ms INTEGER,
    created_at_ms INTEGER NOT NULL,
    started_at_ms INTEGER,
    finished_at_ms INTEGER,
    UNIQUE (job_id, n),
    UNIQUE (build_id, ordinal)
  ) STRICT;
  CREATE INDEX attempts_active ON attempts (status) WHERE status IN ('queued', 'running');

  CREATE TABLE steps (
    attempt_id TEXT NOT NULL REFERENCES attempts ON DELETE CASCADE,
    position INTEGER NOT NULL,
    status TEXT NOT NULL,
    reason TEXT,
    exit_code INTEGER,
    signal TEXT,
    allowed_failure INTEGER NOT NULL DEFAULT 0,
    usage TEXT,
    started_at_ms REAL,
    finished_at_ms REAL,
    PRIMARY KEY (attempt_id, position)
  ) STRICT, WITHOUT ROWID;
  `,
  `
  CREATE TABLE kept (
    attempt_id TEXT NOT NULL REFERENCES attempts ON DELETE CASCADE,
    position INTEGER NOT NULL,
    until_ms INTEGER NOT NULL,
    bytes INTEGER,
    lease_until_ms INTEGER NOT NULL,
    discarded INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (attempt_id, position)
  ) STRICT, WITHOUT ROWID;
  `,
  "ALTER TABLE steps ADD COLUMN refused TEXT",
  `
  CREATE TABLE image_pins (
    build_id TEXT NOT NULL REFERENCES builds (id) ON DELETE CASCADE,
    name TEXT NOT NULL,
    digest TEXT NOT NULL,
    PRIMARY KEY (build_id, name)
  ) STRICT, WITHOUT ROWID;
  `,
  "ALTER TABLE steps ADD COLUMN image_digest TEXT",
  `
  CREATE TABLE secrets (
    id INTEGER PRIMARY KEY,
    repository_id TEXT REFERENCES repositories ON DELETE CASCADE,
    pattern TEXT,
    name TEXT NOT NULL,
    rules TEXT NOT NULL,
    key_id TEXT NOT NULL,
    sealed BLOB NOT NULL,
    created_at_ms INTEGER NOT NULL,
    updated_at_ms INTEGER NOT NULL,
    CHECK ((repository_id IS NULL) <> (pattern IS NULL))
  ) STRICT;
  CREATE UNIQUE INDEX secrets_place ON secrets (name, coalesce(repository_id, ''), coalesce(pattern, ''));
  `,
];
