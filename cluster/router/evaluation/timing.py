"""How long decisions take, one by one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from time import thread_time

import numpy as np

TIMED = 1000
WARM_UP = 20


def decision_times(decide: Callable[[str], object], prompts: Sequence[str]) -> dict[str, float]:
    """Of the first TIMED prompts, in CPU time of this thread, so that what else the machine does is not
    counted: `decide_us_p50`, `decide_us_p99`, `decisions_per_s` on one core."""
    for prompt in prompts[:WARM_UP]:
        decide(prompt)
    times = []
    for prompt in prompts[:TIMED]:
        began = thread_time()
        decide(prompt)
        times.append(thread_time() - began)
    p50, p99 = np.quantile(times, (0.5, 0.99)) * 1e6
    return {
        "decide_us_p50": round(float(p50), 1),
        "decide_us_p99": round(float(p99), 1),
        "decisions_per_s": round(len(times) / sum(times), 1),
    }
