"""From a bundle to a running service: loader, runner, engine, OpenAI server, measurement. Imports only `specs`."""
