"""Side-by-side measurements; each prints what it compares, in CPU seconds."""
