-- ended_at is when the work ended, as its result says; this is when the request's row learned of it.
ALTER TABLE requests ADD COLUMN end_heard_at timestamptz;
