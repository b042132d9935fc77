-- A command that is larger than the broker's max_message_size can never be handed over.
ALTER TABLE requests DROP CONSTRAINT requests_abandon_code_check;
ALTER TABLE requests ADD CONSTRAINT requests_abandon_code_check
    CHECK (abandon_code IN ('cancelled', 'deadline_exceeded', 'input_too_large'));
