"""One file per command; each exposes a plain function that `capstan.cli` calls."""
