-- The log of a request. Its row's lock puts progress and endings of one request in one order.
CREATE TABLE request_logs (
    request_id     text PRIMARY KEY,
    account_id     text    NOT NULL,
    session_id     text    NOT NULL,
    seq            integer NOT NULL,
    attempt        integer NOT NULL DEFAULT 0,
    epoch          text    NOT NULL DEFAULT '',
    visible_cursor bigint  NOT NULL DEFAULT 0,  -- readers see the rows up to here; those never change
    stored_cursor  bigint  NOT NULL DEFAULT 0,  -- the last row; greater while an entry before it is missing
    log_bytes      bigint  NOT NULL DEFAULT 0,
    closed         boolean NOT NULL DEFAULT false,
    CHECK (visible_cursor <= stored_cursor)
) WITH (fillfactor = 70);  -- updated about ten times in its life: room for the new versions on the same page

CREATE TABLE log_events (
    request_id text        NOT NULL,
    cursor     bigint      NOT NULL,
    type       text        NOT NULL CHECK (type IN (
        'attempt.started', 'output.superseded', 'output.delta', 'refusal.delta',
        'request.completed', 'request.incomplete', 'request.failed', 'request.refused', 'request.cancelled')),
    at         timestamptz NOT NULL,
    text       text,  -- of a delta
    data       json,  -- of everything else
    PRIMARY KEY (request_id, cursor),
    CHECK ((text IS NULL) <> (data IS NULL))
);

-- The one ending of a request: its insert is the end. json and not jsonb: kept and given out as it came.
CREATE TABLE results (
    request_id text PRIMARY KEY,
    account_id text        NOT NULL,
    session_id text        NOT NULL,
    seq        integer     NOT NULL,
    status     text        NOT NULL CHECK (status IN ('completed', 'incomplete', 'failed', 'refused', 'cancelled')),
    ended_by   text        NOT NULL CHECK (ended_by IN ('session.ended', 'session.abandoned')),
    digest     text        NOT NULL,  -- of the proposal that won: a repeat of it is told from a late one
    message    json        NOT NULL,  -- the body of result.*, the same for every publish
    input      json        NOT NULL,  -- the turn's input items: the transcript has both sides
    turn_bytes integer     NOT NULL,  -- of input and output items, to bound a page of the transcript
    attempts   json        NOT NULL,
    waits      json        NOT NULL,
    stored_at  timestamptz NOT NULL DEFAULT now()
);

CREATE INDEX results_transcript ON results (session_id, seq) WHERE status IN ('completed', 'incomplete');

-- Endings that came after the end: kept with what they cost, never charged.
CREATE TABLE late_proposals (
    request_id  text        NOT NULL,
    digest      text        NOT NULL,
    proposed_by text        NOT NULL CHECK (proposed_by IN ('session.ended', 'session.abandoned')),
    status      text        NOT NULL CHECK (status IN ('completed', 'incomplete', 'failed', 'refused', 'cancelled')),
    error       json,
    usage       json,
    attempts    json        NOT NULL,
    ended_at    timestamptz NOT NULL,
    received_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (request_id, digest)
);
