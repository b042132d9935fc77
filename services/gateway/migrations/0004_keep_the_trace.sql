-- W3C trace context of the accept, while traces are taken: commands sent later, by whomever, continue its trace.
ALTER TABLE requests ADD COLUMN traceparent text;
