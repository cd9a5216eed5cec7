"""Verifiers of a cascade: is a draft good enough to be the answer? Pure: a draft and what was asked for in, a
verdict out."""

from cluster.router.verifiers.draft import Draft, Expected, Tool, ToolCall, Verdict, Verifier
from cluster.router.verifiers.verification import Verification

__all__ = ["Draft", "Expected", "Tool", "ToolCall", "Verdict", "Verification", "Verifier"]
