-- A worker is one process. Its lease is its row: past expires_at its tasks may be claimed, and it never comes back.
CREATE TABLE workers (
    id            text PRIMARY KEY,
    registered_at timestamptz NOT NULL DEFAULT now(),
    expires_at    timestamptz NOT NULL
);

CREATE INDEX workers_by_expiry ON workers (expires_at);

-- One row for each turn. The states and who moves them: services/orchestrator/task.py.
CREATE TABLE tasks (
    request_id          text PRIMARY KEY,
    account_id          text        NOT NULL,
    session_id          text        NOT NULL,
    seq                 integer     NOT NULL CHECK (seq >= 1),
    state               text        NOT NULL CHECK (state IN ('waiting', 'running', 'backing_off', 'finished')),
    outcome             text        CHECK (outcome IN ('completed', 'incomplete', 'failed', 'refused', 'cancelled')),
    command             json,       -- json, not jsonb: the order of keys in a tool's schema matters to a model
    tokens              integer     NOT NULL CHECK (tokens >= 0),
    decision_id         text,       -- billing's recorded ALLOW; no attempt starts without it
    fence               integer     NOT NULL CHECK (fence >= 1),
    worker_id           text,
    workers_lost        integer     NOT NULL DEFAULT 0 CHECK (workers_lost BETWEEN 0 AND 1000),
    attempts            integer     NOT NULL DEFAULT 0 CHECK (attempts BETWEEN 0 AND 1000),
    waiting_on          text        CHECK (waiting_on IN ('session_turn', 'account_concurrency', 'eligibility',
                                                          'provider_rate_limit', 'retry_backoff', 'capacity')),
    waiting_since       timestamptz,
    due_at              timestamptz,
    cancel_requested_at timestamptz,
    deadline_at         timestamptz NOT NULL,
    created_at          timestamptz NOT NULL DEFAULT now(),
    finished_at         timestamptz,
    ending              json,       -- the body of session.ended, repeated byte for byte
    ended_published_at  timestamptz,
    CONSTRAINT tasks_outcome_when_finished CHECK ((state = 'finished') = (outcome IS NOT NULL)),
    CONSTRAINT tasks_ending_when_finished CHECK ((state = 'finished') = (ending IS NOT NULL AND finished_at IS NOT NULL)),
    CONSTRAINT tasks_command_until_finished CHECK ((state = 'finished') = (command IS NULL)),
    CONSTRAINT tasks_worker_while_running CHECK ((state = 'running') = (worker_id IS NOT NULL)),
    CONSTRAINT tasks_due_while_standing CHECK (
        (state IN ('waiting', 'backing_off')) = (due_at IS NOT NULL AND waiting_on IS NOT NULL AND waiting_since IS NOT NULL)
    )
) WITH (fillfactor = 80);

CREATE INDEX tasks_due ON tasks (due_at) WHERE state IN ('waiting', 'backing_off');
CREATE INDEX tasks_waiting ON tasks (due_at) WHERE state = 'waiting';
CREATE INDEX tasks_standing_by_deadline ON tasks (deadline_at) WHERE state IN ('waiting', 'backing_off');
CREATE INDEX tasks_running_by_worker ON tasks (worker_id) WHERE state = 'running';
CREATE INDEX tasks_by_session ON tasks (session_id, seq);
CREATE INDEX tasks_unfinished_by_session ON tasks (session_id) WHERE state <> 'finished';
CREATE INDEX tasks_owed ON tasks (finished_at) WHERE state = 'finished' AND ended_published_at IS NULL;
CREATE INDEX tasks_finished ON tasks USING brin (finished_at);

-- One row for each provider call, written before the call starts.
CREATE TABLE attempts (
    request_id          text        NOT NULL,
    attempt             integer     NOT NULL CHECK (attempt BETWEEN 1 AND 1000),
    fence               integer     NOT NULL,
    deployment          text        NOT NULL,
    provider            text        NOT NULL,
    upstream_model      text        NOT NULL,
    tokens_reserved     integer     NOT NULL,
    started_at          timestamptz NOT NULL,
    ended_at            timestamptz,
    outcome             text        CHECK (outcome IN (
        'succeeded', 'rate_limited', 'quota_exhausted', 'unauthorized', 'not_found', 'rejected', 'server_error',
        'connect_failed', 'timed_out', 'stalled', 'cut', 'malformed', 'empty', 'too_large', 'invalid_output',
        'cancelled', 'deadline', 'worker_lost', 'handed_back')),
    http_status         integer,
    error_code          text,
    retry_after_seconds double precision,
    first_token_seconds double precision,
    usage               json,
    cost_microcents     bigint      NOT NULL DEFAULT 0,
    PRIMARY KEY (request_id, attempt),
    CONSTRAINT attempts_outcome_when_ended CHECK ((ended_at IS NULL) = (outcome IS NULL))
);

CREATE INDEX attempts_in_flight ON attempts (request_id) WHERE ended_at IS NULL;

-- How long a task stood still, for what. Repeated waits for the same reason after the same attempt are one row.
CREATE TABLE waits (
    request_id    text        NOT NULL,
    after_attempt integer     NOT NULL,
    reason        text        NOT NULL,
    since         timestamptz NOT NULL,
    until         timestamptz NOT NULL,
    PRIMARY KEY (request_id, after_attempt, reason)
);

-- One token bucket for each quota domain. Rates are configuration; a level of NULL was never limited.
CREATE TABLE buckets (
    name         text PRIMARY KEY,
    refilled_at  timestamptz NOT NULL DEFAULT now(),
    requests     double precision,
    tokens       double precision,
    closed_until timestamptz, -- a provider's Retry-After
    queue_until  timestamptz
) WITH (fillfactor = 50);

-- Deployments that rest after failures, for all replicas.
CREATE TABLE cooldowns (
    deployment text PRIMARY KEY,
    until      timestamptz NOT NULL,
    reason     text        NOT NULL
);
