"""The table of each process, and the queue that raw has no need of."""

import os

ENDED = "steps.ended"
SCHEMA = """
    CREATE TABLE IF NOT EXISTS requests (id text PRIMARY KEY, input text NOT NULL, output text);
    CREATE TABLE IF NOT EXISTS holds (id text PRIMARY KEY);
    CREATE TABLE IF NOT EXISTS tasks (id text PRIMARY KEY, output text);
    CREATE TABLE IF NOT EXISTS results (id text PRIMARY KEY, output text NOT NULL)
"""
HOLDER_PORT = "HOLDER_PORT"


def holder_port() -> int:
    """Of the environment, for the arguments are those of the raw pipeline."""
    return int(os.environ[HOLDER_PORT])
