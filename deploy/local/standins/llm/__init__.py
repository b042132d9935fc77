"""An LLM provider that speaks OpenAI's Chat Completions and misbehaves only as its control port was told."""
