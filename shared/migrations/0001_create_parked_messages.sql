-- Messages that could not be handled: kept whole, with the reason, until an operator replays or drops them.
CREATE TABLE parked_messages (
    id           bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    queue        text        NOT NULL,
    digest       text        NOT NULL, -- of id, reason and body: the same message parked twice is one row
    reason       text        NOT NULL,
    type         text,
    ce_id        text,
    routing_key  text,
    content_type text,
    headers      jsonb       NOT NULL,
    body         bytea       NOT NULL,
    body_sha256  text        NOT NULL,
    times_parked integer     NOT NULL DEFAULT 1,
    parked_at    timestamptz NOT NULL DEFAULT now(),
    replayed_at  timestamptz,
    UNIQUE (queue, digest)
);
