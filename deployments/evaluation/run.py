"""The whole evaluation: what has no answer yet is asked for, then policies are scored on the kept answers."""

from __future__ import annotations

import asyncio
import os
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.config import AUTO, ClusterConfig, load_config
from deployments.evaluation.answers import AnswerFile
from deployments.evaluation.cases import Case, read_cases
from deployments.evaluation.collect import Endpoint, Tell, Work, collect
from deployments.evaluation.live import live_report
from deployments.evaluation.own_cluster import own_cluster
from deployments.evaluation.report import pool_of, report_on, tiers_compared

POLICY_VARIABLE = "SPRAT__ROUTER__POLICY"


@dataclass(frozen=True, slots=True)
class Evaluation:
    """`answers` is a folder. `endpoint` is a gateway that runs the YAML `file`; None: a cluster of it is
    started where answers are missing, with the router policy `policy`, and stopped; with `kept_only` nothing
    is asked. `live` cases are asked again with `model: auto`."""

    data: Path
    file: Path
    answers: Path
    endpoint: Endpoint | None = None
    kept_only: bool = False
    policy: str | None = None
    live: int = 0
    seed: int = 0

    def run(self, tell: Tell) -> dict[str, Any]:
        """The report. Raises ConfigError, StartError; answers that came before are kept."""
        config = load_config(self.file, {**os.environ, **self._settings})
        tiers = tiers_compared(config)
        cases = read_cases(self.data)
        kept = AnswerFile(self.answers / "answers.jsonl")
        live = AnswerFile(self.answers / f"live-{config.router.policy}.jsonl")
        # The large model takes longest, so it begins.
        works = [_left(config, tier, tier, cases, kept) for tier in reversed(tiers)]
        live_work = _left(config, AUTO, tiers[-1], cases[: self.live], live)
        if not self.kept_only and any(work.cases for work in (*works, live_work)):
            with self._cluster() as endpoint:
                asyncio.run(collect(endpoint, works, kept.add, tell))
                # By itself, so that the latencies are those of its own load.
                asyncio.run(collect(endpoint, [live_work], live.add, tell))
        answers = kept.read(cases)
        report = report_on(cases, answers, config, seed=self.seed)
        if self.live:
            asked = cases[: self.live]
            found = {case: answer for (case, _), answer in live.read(asked).items()}
            report["live"] = live_report(config.router.policy, asked, found, answers, tiers[-1])
        return report

    @property
    def _settings(self) -> dict[str, str]:
        return {POLICY_VARIABLE: self.policy} if self.policy is not None else {}

    def _cluster(self) -> AbstractContextManager[Endpoint]:
        if self.endpoint is not None:
            return nullcontext(self.endpoint)
        return own_cluster(self.file, self.answers / "cluster", self._settings)


def _left(config: ClusterConfig, asked: str, tier: str, cases: tuple[Case, ...], file: AnswerFile) -> Work:
    """What has no answer yet, as many at a time as the tier has slots."""
    have = file.read(cases)
    left = [case for case in cases if (case.id, asked) not in have]
    return Work(asked, left, config.pools[pool_of(config, tier)].max_concurrency)
