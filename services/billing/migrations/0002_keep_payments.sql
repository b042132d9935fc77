-- Payments that were disputed, refunded or taken for a fraud: whatever else Stripe says of a payment is in its invoice.
CREATE TABLE payments (
    charge_id   text PRIMARY KEY,
    customer_id text NOT NULL,
    fact        jsonb NOT NULL,
    fetched_at  timestamptz NOT NULL
);
CREATE INDEX payments_of_customer ON payments (customer_id);

-- The charge to look at, where an event is about one.
ALTER TABLE stripe_events ADD COLUMN charge_id text;
