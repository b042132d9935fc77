"""SQL of results: one function per query. Those given a connection run inside the caller's transaction."""
