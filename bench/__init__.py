"""The benchmark: Parley beside a raw pipeline, both under the same load, on the same broker, database and provider."""
