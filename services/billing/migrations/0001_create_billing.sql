-- The rules that decisions were made by: with facts, usage and the instant, a decision can be made again.
CREATE TABLE policies (
    version         text PRIMARY KEY,
    body            jsonb NOT NULL,
    last_started_at timestamptz NOT NULL
);

-- What Stripe said, and the reasons we ourselves have to look at an object of Stripe's.
CREATE TABLE stripe_events (
    event_id        text PRIMARY KEY,
    family          text NOT NULL CHECK (family IN ('snapshot', 'thin', 'look')),
    type            text NOT NULL,
    livemode        boolean,
    api_version     text,
    customer_id     text,
    subscription_id text,
    raw             bytea,
    secret_index    smallint,
    received_at     timestamptz NOT NULL DEFAULT clock_timestamp(),
    state           text NOT NULL CHECK (state IN ('received', 'failed', 'applied', 'ignored', 'dead')),
    reason          text,
    attempts        integer NOT NULL DEFAULT 0,
    next_attempt_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    last_error      text,
    ended_at        timestamptz,
    CHECK ((state IN ('received', 'failed')) = (ended_at IS NULL)),
    CHECK ((state = 'ignored') = (reason IS NOT NULL))
);
CREATE INDEX stripe_events_due ON stripe_events (next_attempt_at) WHERE state IN ('received', 'failed');
CREATE INDEX stripe_events_due_of_customer ON stripe_events (customer_id) WHERE state IN ('received', 'failed');
CREATE INDEX stripe_events_dead ON stripe_events (received_at) WHERE state = 'dead';

CREATE TABLE customers (
    customer_id text PRIMARY KEY,
    account_id  text,
    deleted     boolean NOT NULL,
    fetched_at  timestamptz NOT NULL
);
CREATE INDEX customers_of_account ON customers (account_id);

CREATE TABLE subscriptions (
    subscription_id text PRIMARY KEY,
    customer_id     text NOT NULL,
    status          text NOT NULL,
    fact            jsonb NOT NULL,
    body            jsonb NOT NULL,
    gone            boolean NOT NULL,
    revision        bigint NOT NULL,
    fetched_at      timestamptz NOT NULL
);
CREATE INDEX subscriptions_of_customer ON subscriptions (customer_id);

CREATE TABLE overlays (
    overlay_id text PRIMARY KEY,
    account_id text NOT NULL,
    kind       text NOT NULL CHECK (kind IN ('block', 'allow')),
    plan       text,
    reason     text NOT NULL,
    actor      text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    until      timestamptz,
    lifted_at  timestamptz,
    CHECK (kind = 'block' OR until IS NOT NULL)
);
CREATE INDEX overlays_of_account ON overlays (account_id) WHERE lifted_at IS NULL;

-- One row for each account: its facts as decisions read them, and the decision that is in force.
CREATE TABLE eligibilities (
    account_id         text PRIMARY KEY,
    fact_version       bigint NOT NULL,
    facts              jsonb NOT NULL,
    sequence           bigint NOT NULL DEFAULT 0,
    published_sequence bigint NOT NULL DEFAULT 0,
    decision_id        text,
    eligibility        jsonb,
    decided_at         timestamptz,
    valid_until        timestamptz,
    policy_version     text,
    CHECK (published_sequence <= sequence),
    CHECK ((sequence = 0) = (eligibility IS NULL))
);
CREATE INDEX eligibilities_due ON eligibilities (valid_until) WHERE valid_until IS NOT NULL;
CREATE INDEX eligibilities_owed ON eligibilities (decided_at) WHERE published_sequence < sequence;

CREATE TABLE fact_versions (
    account_id   text NOT NULL,
    fact_version bigint NOT NULL,
    facts        jsonb NOT NULL,
    recorded_at  timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (account_id, fact_version)
);

-- Append-only. `inputs` holds what is not found by fact_version and policy_version.
CREATE TABLE decisions (
    decision_id    text PRIMARY KEY,
    account_id     text NOT NULL,
    request_id     text,
    decision       text NOT NULL CHECK (decision IN ('ALLOW', 'ALLOW_GRACE', 'DENY', 'INDETERMINATE')),
    eligibility    jsonb NOT NULL,
    policy_version text NOT NULL,
    fact_version   bigint NOT NULL,
    inputs         jsonb NOT NULL,
    decided_at     timestamptz NOT NULL
);
CREATE INDEX decisions_of_request ON decisions (request_id) WHERE request_id IS NOT NULL;
CREATE INDEX decisions_of_account ON decisions (account_id, decided_at);

CREATE TABLE credit_accounts (
    account_id       text NOT NULL,
    period_start     timestamptz NOT NULL,
    period_end       timestamptz NOT NULL,
    plan             text,
    granted          bigint,
    settled          bigint NOT NULL DEFAULT 0 CHECK (settled >= 0),
    held             bigint NOT NULL DEFAULT 0 CHECK (held >= 0),
    requests_charged bigint NOT NULL DEFAULT 0,
    PRIMARY KEY (account_id, period_start),
    CONSTRAINT credit_within_grant CHECK (settled + held <= granted)
);

-- One row for each request that billing was asked about or that ended. A denied request has a row that was
-- released at birth, so that the primary key alone makes every answer the first answer.
CREATE TABLE holds (
    request_id     text PRIMARY KEY,
    account_id     text NOT NULL,
    decision_id    text,
    model          text,
    period_start   timestamptz,
    held_tokens    bigint NOT NULL CHECK (held_tokens >= 0),
    state          text NOT NULL CHECK (state IN ('held', 'settled', 'released', 'expired')),
    expires_at     timestamptz,
    created_at     timestamptz NOT NULL,
    ended_at       timestamptz,
    result         text CHECK (result IN ('completed', 'incomplete', 'failed', 'refused', 'cancelled')),
    reason         text,
    charged_tokens bigint NOT NULL DEFAULT 0 CHECK (charged_tokens >= 0),
    CHECK ((state = 'held') = (ended_at IS NULL)),
    CHECK (state <> 'held' OR (expires_at IS NOT NULL AND period_start IS NOT NULL AND decision_id IS NOT NULL))
);
CREATE INDEX holds_due ON holds (expires_at) WHERE state = 'held';

-- `charge` is what the grant paid, `debt` what went beyond it, `late` what came after the end and is not charged.
CREATE TABLE ledger (
    request_id   text NOT NULL,
    kind         text NOT NULL CHECK (kind IN ('charge', 'debt', 'late')),
    account_id   text NOT NULL,
    period_start timestamptz,
    tokens       bigint NOT NULL CHECK (tokens >= 0),
    reason       text NOT NULL,
    at           timestamptz NOT NULL,
    PRIMARY KEY (request_id, kind)
);
CREATE INDEX ledger_of_account ON ledger (account_id, at);

-- At most one open attempt for each account and plan: two clicks lead to one page of Stripe's.
CREATE TABLE checkouts (
    checkout_id text PRIMARY KEY,
    account_id  text NOT NULL,
    plan        text NOT NULL,
    session_id  text,
    url         text,
    created_at  timestamptz NOT NULL DEFAULT clock_timestamp(),
    expires_at  timestamptz NOT NULL,
    closed_at   timestamptz
);
CREATE UNIQUE INDEX checkouts_open ON checkouts (account_id, plan) WHERE closed_at IS NULL;

CREATE TABLE cursors (
    name     text PRIMARY KEY,
    position timestamptz NOT NULL
);
