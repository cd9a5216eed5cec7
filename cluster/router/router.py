"""From a request's features to a decision.

`model` is looked up in this order: `auto`, tier, adapter, base model (the YAML check refuses clashes).
For `auto` the header `x-sprat-tier` decides, else the policy. Then the context limit: a call that
does not fit goes up by itself. A cascade is two decisions: that of the draft holds what follows when it is
refused.

Embeddings never climb: vectors of two models cannot be compared, so `auto` is the first embedding model of
the YAML, and all candidates of a call serve the same one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from cluster.config import AUTO, ClusterConfig
from cluster.config.policies import CascadeConfig
from cluster.config.verifiers import Evidence, evidence_for
from cluster.errors import ContextLengthExceeded, InvalidRequest, UnknownModel
from cluster.router.policies.policy import Choice, RoutingPolicy
from cluster.router.policies.registry import Policies
from cluster.router.view import FleetView, PoolView
from cluster.types import Candidate, Cascade, Considered, Decision, RequestFeatures, RequestKind

SURELY_TOO_LONG = 0.5
"""Text of 8 bytes per token and more is rare: what is too long even then is refused without asking."""

Option = tuple[PoolView, str | None]
"""A pool and the adapter to use on it (None: the base model itself)."""


class Router:
    """Pure and deterministic: the simulator runs the same object."""

    def __init__(
        self, view: FleetView, policy: RoutingPolicy, drafts: Mapping[str, Evidence], *, fall_back_up: bool
    ) -> None:
        """`drafts`: what the verifiers of each cascade need to see of them."""
        self.view = view
        self._policy = policy
        self._drafts = drafts
        self._fall_back_up = fall_back_up
        self._known_options: dict[tuple[tuple[str, ...], RequestKind, bool], list[Option]] = {}

    @classmethod
    def of(cls, config: ClusterConfig) -> Router:
        """Raises ConfigError for files of policies that cannot be used."""
        view = FleetView.of(config)
        drafts = {
            name: evidence_for(policy.verify)
            for name, policy in config.router.policies.items()
            if isinstance(policy, CascadeConfig)
        }
        return cls(
            view,
            Policies(config.router, view).named(config.router.policy),
            drafts,
            fall_back_up=config.router.fall_back_up,
        )

    def with_view(self, view: FleetView) -> Router:
        """The same policy before a fleet that serves other adapters."""
        return Router(view, self._policy, self._drafts, fall_back_up=self._fall_back_up)

    def names(self) -> tuple[str, ...]:
        """Everything that `model` may say."""
        view = self.view
        return (AUTO, *view.tiers, *view.live_names(), *view.adapters(), *view.base_models())

    def route(self, features: RequestFeatures, draw: float = 0.0) -> Decision:
        """`draw`: the call's own chance, uniform in [0, 1), for policies that leave something to chance.
        Raises UnknownModel, InvalidRequest (unknown or contradicting tier), ContextLengthExceeded."""
        choice = self._choice(features, draw)
        if not choice.verified_by or features.kind is not RequestKind.GENERATE:
            return self._decision(choice, features)
        last = self._decision(replace(choice, target=choice.escalate_to, acceptable=()), features)
        draft = self._decision(choice, features)
        if draft.first.pool == last.first.pool:  # the draft did not fit its own context
            return draft
        return replace(draft, cascade=Cascade(choice.verified_by, last, *self._drafts[choice.verified_by]))

    def _decision(self, choice: Choice, features: RequestFeatures) -> Decision:
        generates = features.kind is RequestKind.GENERATE
        climbs = generates and self._fall_back_up and features.model == AUTO
        options = self._options((choice.target, *choice.acceptable), features.kind, climbs=climbs)
        fitting = [option for option in options if option[0].fits(features)] or _may_fit(features, options)
        if not fitting:
            raise _too_long(features, options)
        reason = choice.reason
        if fitting[0][0].tier != options[0][0].tier:
            reason += f";context>{options[0][0].tier}"
        candidates = [pool.candidate(features, adapter) for pool, adapter in fitting]
        if choice.considered:
            candidates = _with_estimates(candidates, choice.considered)
        return Decision(
            candidates=tuple(candidates),
            reason=reason,
            policy=self._policy.name,
            # No large model makes embeddings, so nothing is saved by not asking it.
            large_price=self.view.large_price if generates else fitting[0][0].candidate(features, None).price,
            action=choice.action,
            probability=choice.probability if choice.considered else 1.0,
            considered=choice.considered,
        )

    def _choice(self, features: RequestFeatures, draw: float) -> Choice:
        tier = features.header_tier
        if tier is not None and tier not in self.view.tiers:
            raise InvalidRequest(
                f"x-sprat-tier is {tier!r}; this cluster has {', '.join(self.view.tiers)}.",
                param="x-sprat-tier",
            )
        if features.model != AUTO:
            if tier is not None and tier != features.model:
                raise InvalidRequest(
                    f"x-sprat-tier: {tier} contradicts model: {features.model}. "
                    "Use model: auto with the header.",
                    param="x-sprat-tier",
                )
            return Choice(target=features.model, reason=f"model:{features.model}")
        if tier is not None:
            return Choice(target=tier, reason=f"header:{tier}")
        if features.kind is RequestKind.EMBED:
            models = self.view.base_models_of(RequestKind.EMBED)
            return Choice(target=models[0] if models else AUTO, reason="embed")
        return self._policy.choose(features, draw)

    def _options(self, targets: tuple[str, ...], kind: RequestKind, *, climbs: bool) -> list[Option]:
        """All pools that serve the targets, target by target, the cheapest first, then those of the tiers
        above the first one if it climbs; at least one. Remembered: only names of this fleet get that far."""
        asked = (targets, kind, climbs)
        options = self._known_options.get(asked)
        if options is None:
            first = self._serving(targets[0], kind)
            above = self.view.tiers_above(first[-1][0].tier) if climbs else ()
            options = [
                *first,
                *[option for target in targets[1:] for option in self._serving(target, kind)],
                *[(pool, None) for tier in above for pool in self.view.pools_of_tier(tier)],
            ]
            options = list(dict.fromkeys(options))
            self._known_options[asked] = options
        return options

    def _serving(self, target: str, kind: RequestKind) -> list[Option]:
        view = self.view
        # A tier stands for its generating models, also when only tokens are counted.
        of_tier = RequestKind.EMBED if kind is RequestKind.EMBED else RequestKind.GENERATE
        by_price = [pool for tier in view.tiers for pool in view.pools_of_tier(tier, kind)]
        adapter = view.resolve_adapter(target)
        options: list[Option]
        if target in view.tiers:
            options = [(pool, None) for pool in view.pools_of_tier(target, of_tier)]
        elif adapter is not None:
            options = [(pool, adapter) for pool in by_price if adapter in pool.adapters]
        else:
            options = [(pool, None) for pool in by_price if pool.base_model == target]
        if kind is RequestKind.EMBED:
            options = [option for option in options if option[0].base_model == options[0][0].base_model]
        if not options:
            raise self._not_served(target, kind)
        return options

    def _not_served(self, target: str, kind: RequestKind) -> InvalidRequest | UnknownModel:
        known = target in (AUTO, *self.view.tiers, *self.view.base_models())
        if not known and self.view.resolve_adapter(target) is None:
            return UnknownModel(
                f"The model {target!r} does not exist here. GET /v1/models lists what does.", param="model"
            )
        does = "makes no embeddings" if kind is RequestKind.EMBED else "makes embeddings only"
        names = ", ".join(self.view.base_models_of(kind)) or "none in this cluster"
        return InvalidRequest(
            f"{target!r} {does}. Models for this route: {names}.", param="model", code="wrong_model_kind"
        )


def escalation(decision: Decision, failed: Candidate) -> Decision | None:
    """What is left after a candidate's engine found the prompt too long: the larger contexts. Of a cascade:
    what would have followed the draft."""
    after = decision if decision.cascade is None else decision.cascade.then
    left = tuple(each for each in after.candidates if each.context_tokens > failed.context_tokens)
    if not left:
        return None
    return replace(decision, candidates=left, reason=f"{decision.reason};context>{failed.tier}", cascade=None)


def _with_estimates(candidates: list[Candidate], considered: tuple[Considered, ...]) -> list[Candidate]:
    """Each with what the policy expects of it: of its adapter, base model or tier."""
    known = {each.action.partition(">")[0]: each for each in considered}
    nothing = Considered("", 0.0)
    found = []
    for candidate in candidates:
        of_it = known.get(candidate.model) or known.get(candidate.tier) or nothing
        found.append(
            replace(candidate, p_success=of_it.p_success, expected_micro_usd=of_it.expected_micro_usd)
        )
    return found


def _may_fit(features: RequestFeatures, options: list[Option]) -> list[Option]:
    """The largest context, where the estimate may be wrong: the engine's own count decides."""
    largest = max(pool.context_tokens for pool, _ in options)
    return [
        option
        for option in options
        if option[0].context_tokens == largest and option[0].fits(features, share=SURELY_TOO_LONG)
    ]


def _too_long(features: RequestFeatures, options: list[Option]) -> ContextLengthExceeded:
    largest = max(options, key=lambda option: option[0].context_tokens)[0]
    # It begins with OpenAI's words: some clients know the error by them, and shorten the history.
    return ContextLengthExceeded(
        f"This model's maximum context length is {largest.context_tokens} tokens; this call needs about "
        f"{features.longest_prompt_tokens} prompt tokens + {largest.max_tokens(features)} output tokens. "
        "Shorten the prompt or lower max_tokens.",
        param="max_tokens" if features.max_tokens else "messages",
    )
