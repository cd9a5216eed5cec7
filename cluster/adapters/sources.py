"""Where an adapter's files come from: the source string of the registry, parsed.

folder:PATH            a folder with adapter_config.json and adapter_model.safetensors
hf:REPO@REVISION       a Hugging Face repository with them; registered with the commit it meant then
s3://BUCKET/PREFIX     an S3-compatible store with them below the prefix
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from cluster.adapters.errors import AdapterRefused
from cluster.adapters.version import shown
from cluster.sources import FolderSource, HubSource, parse_source

_S3 = re.compile(r"s3://(?P<bucket>[a-z0-9][a-z0-9.-]{1,61}[a-z0-9])/(?P<prefix>[^\s\0]+)")

_FORMS = "folder:PATH, hf:REPO@REVISION or s3://BUCKET/PREFIX"


@dataclass(frozen=True, slots=True)
class S3Source:
    bucket: str
    prefix: str  # without a slash at its end

    def key(self, name: str) -> str:
        """Of one of our own file names: a prefix is the operator's, a name never comes from the store."""
        return f"{self.prefix}/{name}"

    def __str__(self) -> str:
        return f"s3://{self.bucket}/{self.prefix}"


AdapterSource = FolderSource | HubSource | S3Source


def parse_adapter_source(text: str) -> AdapterSource:
    """`str` of the answer is the source again. Raises AdapterRefused with the forms."""
    if text.startswith("s3:"):
        match = _S3.fullmatch(text)
        if match is None or ".." in match["prefix"].split("/"):
            raise AdapterRefused(f"{shown(text)} is no place in an S3 store. Write s3://BUCKET/PREFIX.")
        return S3Source(match["bucket"], match["prefix"].rstrip("/"))
    try:
        source = parse_source(text)
    except ValueError:
        raise AdapterRefused(f"{shown(text)} is no source of an adapter. Write {_FORMS}.") from None
    if not isinstance(source, FolderSource | HubSource):
        raise AdapterRefused(f"{shown(text)}: an adapter comes from {_FORMS}, not from a package.")
    return source
