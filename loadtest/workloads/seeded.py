from random import Random


def seeded(seed: int, name: str) -> Random:
    """A random source of its own for each use, so that one more draw in one place changes no other."""
    return Random(f"{seed}/{name}")  # noqa: S311 (a load, no secret)
