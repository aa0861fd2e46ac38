"""Words that people read."""


def counted(number: int, noun: str) -> str:
    """`1 batch`, `2 batches`, `1,000 videos`."""
    plural = "es" if noun.endswith(("s", "sh", "ch", "x")) else "s"
    return f"{number:,} {noun}{plural * (number != 1)}"
