"""Names as Kubernetes and clouds allow them."""

from __future__ import annotations

import re

LONGEST = 41
"""Of a RayService (KubeRay 1.7): Services and pods append to it."""


def dns_label(name: str) -> str:
    """Lower case, digits and dashes, a letter first: RFC 1035."""
    cleaned = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    return (cleaned if cleaned[:1].isalpha() else f"n-{cleaned}")[:LONGEST].rstrip("-")
