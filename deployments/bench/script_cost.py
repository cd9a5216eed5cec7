"""Server time of the scheduler's scripts, in us per call.

Calls go out in pipelined bursts, and the server's own count of the time in EVALSHA is read before and after each:
no client, no socket and no queue is in it. The machine's speed wanders by tens of percent, so the cases take
turns, burst by burst, and a figure is the median over its bursts; the fastest burst tells how much of it the
machine added.
"""

from __future__ import annotations

import math
import random
import statistics
import time
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from redis.asyncio import Redis

from cluster.clock import SystemClock
from cluster.scheduler import scripts
from cluster.scheduler.redis_connection import connect
from cluster.scheduler.redis_scheduler import RedisScheduler
from cluster.types import QueueTerms
from deployments.bench.cost_cases import RUNNING_PER_REPLICA, Case, PoolOfReplicas
from deployments.bench.recorded_commands import Command, CommandRecorder
