"""What a gateway process is handed, as a file in a private folder: no secret is on a command line."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.config import load_config
from deployments.runtime import Runtime

FILE = "runtime.json"


@dataclass(frozen=True, slots=True)
class GatewayFolder:
    """Processes of one folder share port, store and journals, as the gateways of a node do."""

    path: Path

    def write(
        self,
        *,
        config_file: Path,
        settings: Mapping[str, str],
        redis_url: str,
        store_url: str,
        **secrets: str,
    ) -> None:
        """`settings` override the file, as environment variables would: `SPRAT__GATEWAY__PORT`."""
        fields = {"config_file": str(config_file), "settings": dict(settings), "redis_url": redis_url}
        file = self.path / FILE
        file.touch(mode=0o600)
        file.write_text(json.dumps(fields | {"store_url": store_url} | secrets), encoding="utf-8")

    def runtime(self) -> Runtime:
        fields: dict[str, Any] = json.loads((self.path / FILE).read_text(encoding="utf-8"))
        return Runtime(
            config=load_config(Path(fields["config_file"]), fields["settings"]),
            redis_url=fields["redis_url"],
            store_url=fields["store_url"],
            journal_folder=str(self.path / "journal"),
            gateway_token=fields["gateway_token"],
            pepper=bytes.fromhex(fields["pepper"]),
            rebuild_grace_ms=0,  # an empty Redis and an empty ledger: nothing was lost
        )
