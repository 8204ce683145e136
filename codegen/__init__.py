"""Plan -> Bundle, and Plan -> files for other engines."""
