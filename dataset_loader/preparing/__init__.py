"""Getting data ready, once: download, validate, split, rewrite. What loads stays above and imports nothing of this."""
