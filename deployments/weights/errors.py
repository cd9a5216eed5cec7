"""What goes wrong on the way from a weights source to a ready folder."""

from collections.abc import Sequence

from cluster.errors import StartError


class WeightsError(StartError):
    """Weights cannot be made ready. `fix` is one sentence that says what to do.

    str() holds problem and fix, and below them `details`: the last lines of a program that failed.
    """

    def __init__(self, problem: str, fix: str, details: Sequence[str] = ()) -> None:
        super().__init__("\n  ".join([f"{problem}. {fix}", *details]))
        # What __init__ takes, so that the error survives pickling between processes.
        self.args = (problem, fix, tuple(details))
        self.problem = problem
        self.fix = fix
        self.details = tuple(details)

    def __str__(self) -> str:
        return self.message
