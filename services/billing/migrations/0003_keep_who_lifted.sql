-- Who ended a block or an allow; its own actor and reason are about its beginning.
ALTER TABLE overlays ADD COLUMN lifted_by text;
