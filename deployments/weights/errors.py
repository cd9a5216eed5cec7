"""What goes wrong on the way from a weights source to a ready folder."""

from collections.abc import Sequence


class WeightsError(Exception):
    """Weights cannot be made ready. `fix` is one sentence that says what to do.

    str() holds problem and fix, and below them `details`: the last lines of a program that failed.
    """

    # All positional in args, so that the error survives pickling between processes.
    def __init__(self, problem: str, fix: str, details: Sequence[str] = ()) -> None:
        super().__init__(problem, fix, tuple(details))
        self.problem = problem
        self.fix = fix
        self.details = tuple(details)

    def __str__(self) -> str:
        return "\n  ".join([f"{self.problem}. {self.fix}", *self.details])
