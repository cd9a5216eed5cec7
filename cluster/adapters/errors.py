"""Why an adapter cannot be used. `code` is the state that `sprat adapters show` prints.

Unlike most errors these are for operators: a message may name a folder, a bucket or a repository.
"""

from __future__ import annotations

from cluster.errors import SpratError


class AdapterProblem(SpratError):
    """Root: one adapter cannot be used, others are not touched by it."""

    code = "adapter_problem"


class AdapterUnavailable(AdapterProblem):
    """Its source does not answer now: hub offline, store unreachable, folder gone. Worth another try."""

    status = 503
    code = "unavailable"


class AdapterCorrupt(AdapterProblem):
    """Its bytes are not what they should be: truncated, or of another content than was registered."""

    code = "corrupt"


class AdapterRefused(AdapterProblem):
    """Its bytes are whole, and we do not serve such an adapter: pickles, DoRA, a name that is none, …"""

    code = "refused"


class BaseMismatch(AdapterRefused):
    """It was made for another base model: a module is missing there, or has another shape."""

    code = "base_mismatch"


class RankAbovePool(AdapterRefused):
    """Its rank does not fit the `max_rank` of the pool."""

    code = "rank_above_pool"


class AdapterCacheFull(AdapterProblem):
    """What the node may keep is full of adapters that are in use."""

    status = 503
    code = "cache_full"


class UnknownAdapter(AdapterProblem):
    """No such name or version in the registry."""

    status = 404
    code = "unknown"


class ForbiddenMove(AdapterProblem):
    """The life of an adapter has no such step, or another writer was faster."""

    status = 409
    code = "forbidden_move"
