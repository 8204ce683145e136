"""The OpenAI protocol over the engine."""
