-- json and not jsonb: the order of keys in a schema or a tool's parameters matters to a model.
ALTER TABLE requests ALTER COLUMN settings TYPE json;
