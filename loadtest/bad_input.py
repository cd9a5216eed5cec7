"""What the user has to change before a run can start."""

from __future__ import annotations


class BadInput(ValueError):
    """The message names the option, the value and the way out. The command ends with code 2."""
