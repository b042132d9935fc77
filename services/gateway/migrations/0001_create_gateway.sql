-- Accounts, keys, sessions, requests, and the copy of eligibility. States are the words of request_state.NEXT.

CREATE TABLE accounts (
    id         text        PRIMARY KEY,
    name       text        NOT NULL CHECK (char_length(name) BETWEEN 1 AND 200),
    created_at timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE api_keys (
    id          text        PRIMARY KEY,
    account_id  text        REFERENCES accounts, -- null: an administrator's key
    scope       text        NOT NULL CHECK (scope IN ('account', 'admin')),
    name        text,
    secret_hash bytea       NOT NULL UNIQUE,
    last_four   text        NOT NULL,
    created_at  timestamptz NOT NULL DEFAULT now(),
    revoked_at  timestamptz,
    CHECK ((scope = 'admin') = (account_id IS NULL))
);
CREATE INDEX api_keys_by_account ON api_keys (account_id, id);

-- Billing's word as last heard. Only a greater sequence replaces a row.
CREATE TABLE eligibilities (
    account_id  text        PRIMARY KEY REFERENCES accounts,
    sequence    bigint      NOT NULL,
    eligibility jsonb       NOT NULL,
    decided_at  timestamptz NOT NULL
);

CREATE TABLE sessions (
    id              text        PRIMARY KEY,
    account_id      text        NOT NULL REFERENCES accounts,
    instructions    text,
    model           text        NOT NULL,
    metadata        jsonb       NOT NULL,
    idempotency_key text,
    fingerprint     bytea,
    running         text,                           -- the request that has the turn
    next_seq        integer     NOT NULL DEFAULT 1 CHECK (next_seq >= 1),
    open_requests   integer     NOT NULL DEFAULT 0 CHECK (open_requests >= 0),
    created_at      timestamptz NOT NULL DEFAULT now(),
    deleted_at      timestamptz,
    CHECK ((idempotency_key IS NULL) = (fingerprint IS NULL))
) WITH (fillfactor = 70); -- each turn updates the row in place twice; no index holds what changes
CREATE INDEX sessions_by_account ON sessions (account_id, id DESC) WHERE deleted_at IS NULL;
CREATE UNIQUE INDEX sessions_by_idempotency_key ON sessions (account_id, idempotency_key)
    WHERE idempotency_key IS NOT NULL;

-- No foreign key to sessions: a row is only inserted by the statement that has locked its session.
CREATE TABLE requests (
    id                  text        PRIMARY KEY,
    session_id          text        NOT NULL,
    account_id          text        NOT NULL,
    seq                 integer     NOT NULL,
    state               text        NOT NULL CHECK (state IN (
        'queued', 'in_progress', 'completed', 'incomplete', 'failed', 'refused', 'cancelled')),
    model               text        NOT NULL,
    settings            jsonb       NOT NULL,
    input               jsonb       NOT NULL,
    metadata            jsonb       NOT NULL,
    idempotency_key     text,
    fingerprint         bytea       NOT NULL,           -- of the body as it was sent
    accepted_at         timestamptz NOT NULL,
    deadline_at         timestamptz NOT NULL,
    dispatched_at       timestamptz,                    -- when it got the turn
    attempt             integer     NOT NULL DEFAULT 0, -- as last heard from progress
    waiting_on          text        CHECK (waiting_on IN (
        'session_turn', 'account_concurrency', 'eligibility', 'provider_rate_limit', 'retry_backoff', 'capacity')),
    hinted_at           timestamptz,                    -- the instant of the progress last heard
    started_at          timestamptz,
    cancel_requested_at timestamptz,
    abandoned_at        timestamptz,                    -- when an ending was proposed from here
    abandon_code        text        CHECK (abandon_code IN ('cancelled', 'deadline_exceeded')),
    ended_at            timestamptz,
    result              jsonb,                          -- the result.* message as it came
    charge              jsonb,
    checks              integer     NOT NULL DEFAULT 0,
    next_check_at       timestamptz,                    -- when somebody must look after it
    -- Publishes owed by this row, since when; null once the broker has confirmed them.
    requested_owed_at   timestamptz,
    cancel_owed_at      timestamptz,
    abandon_owed_at     timestamptz,
    UNIQUE (session_id, seq),
    CHECK ((state IN ('queued', 'in_progress')) = (ended_at IS NULL)),
    CHECK ((ended_at IS NULL) = (result IS NULL)),
    CHECK ((ended_at IS NULL) = (next_check_at IS NOT NULL)),
    CHECK (state <> 'in_progress' OR dispatched_at IS NOT NULL),
    CHECK ((abandoned_at IS NULL) = (abandon_code IS NULL))
) WITH (fillfactor = 85);
CREATE UNIQUE INDEX requests_by_idempotency_key ON requests (session_id, idempotency_key)
    WHERE idempotency_key IS NOT NULL;
CREATE INDEX requests_by_account ON requests (account_id, id DESC);
CREATE INDEX requests_by_account_and_state ON requests (account_id, state, id DESC);
CREATE INDEX requests_due ON requests (next_check_at, deadline_at) WHERE next_check_at IS NOT NULL;
CREATE INDEX requests_owed ON requests (requested_owed_at) WHERE requested_owed_at IS NOT NULL;
CREATE INDEX cancels_owed ON requests (cancel_owed_at) WHERE cancel_owed_at IS NOT NULL;
CREATE INDEX abandons_owed ON requests (abandon_owed_at) WHERE abandon_owed_at IS NOT NULL;
