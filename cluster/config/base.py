"""What all sections of a cluster YAML share."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

AUTO = "auto"

POOL_NAME = r"^[a-z0-9][a-z0-9_-]{0,39}$"
MODEL_NAME = r"^[a-z0-9][a-z0-9._-]{0,63}$"
ADAPTER_ID = r"^[a-z0-9][a-z0-9._-]{0,63}(@[0-9]{1,6})?$"  # THREATS.md row 12

Name = Annotated[str, Field(pattern=POOL_NAME)]
ModelName = Annotated[str, Field(pattern=MODEL_NAME)]
AdapterId = Annotated[str, Field(pattern=ADAPTER_ID)]


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
