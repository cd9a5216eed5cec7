"""`s3://BUCKET/PREFIX`: any S3-compatible store. The only module that knows boto3, which is optional.

Endpoint, region and credentials are those of the standard environment (AWS_ENDPOINT_URL, AWS_REGION,
AWS_ACCESS_KEY_ID, AWS_PROFILE, …) or of the node's role; none of them is ever in a source.
"""

from __future__ import annotations

import shutil
from contextlib import closing
from pathlib import Path
from typing import Any

from cluster.adapters.content import FILES
from cluster.adapters.errors import AdapterRefused, AdapterUnavailable
from cluster.adapters.folder import check_size, missing_files
from cluster.adapters.sources import S3Source

CONNECT_TIMEOUT_S = 5
READ_TIMEOUT_S = 30
ATTEMPTS = 3

_MAX_LISTED = 1_000
_CHUNK_BYTES = 2**20


def download_from_s3(source: S3Source, into: Path) -> S3Source:
    """Raises AdapterUnavailable, AdapterRefused."""
    try:
        from botocore.exceptions import BotoCoreError, ClientError
    except ImportError as error:
        raise AdapterUnavailable(
            f"{source}: reading S3 stores needs boto3. Install it with `pip install 'sprat[s3]'`."
        ) from error
    try:
        client = _client()
        try:
            for name in FILES:
                _download(client, source, name, into / name)
        except client.exceptions.NoSuchKey as error:
            raise AdapterRefused(f"{source}: {_what_is_missing(client, source)}") from error
    except (BotoCoreError, ClientError) as error:
        raise _unavailable(source, error) from error
    return source


def _client() -> Any:
    import boto3
    from botocore.config import Config

    return boto3.session.Session().client(
        "s3",
        config=Config(
            connect_timeout=CONNECT_TIMEOUT_S,
            read_timeout=READ_TIMEOUT_S,
            retries={"mode": "standard", "total_max_attempts": ATTEMPTS},
        ),
    )


def _what_is_missing(client: Any, source: S3Source) -> str:
    place = source.key("")
    answer = client.list_objects_v2(Bucket=source.bucket, Prefix=place, Delimiter="/", MaxKeys=_MAX_LISTED)
    return missing_files({found["Key"].removeprefix(place) for found in answer.get("Contents", ())})


def _download(client: Any, source: S3Source, name: str, target: Path) -> None:
    answer = client.get_object(Bucket=source.bucket, Key=source.key(name))
    check_size(name, answer["ContentLength"])
    # `closing`, as its own `with` gives a stream that does not check that all announced bytes come.
    with closing(answer["Body"]) as body, target.open("xb") as file:
        shutil.copyfileobj(body, file, _CHUNK_BYTES)


def _unavailable(source: S3Source, error: Exception) -> AdapterUnavailable:
    code = str(getattr(error, "response", {}).get("Error", {}).get("Code", ""))
    if code in {"NoSuchBucket", "404"}:
        return AdapterUnavailable(f"{source}: there is no such bucket. Check its name and AWS_ENDPOINT_URL.")
    if code in {"AccessDenied", "403", "InvalidAccessKeyId", "SignatureDoesNotMatch"}:
        return AdapterUnavailable(
            f"{source}: the store does not let us in ({code}). Check AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY, and what they may read."
        )
    if type(error).__name__ in {"NoCredentialsError", "PartialCredentialsError", "ProfileNotFound"}:
        return AdapterUnavailable(
            f"{source}: there are no credentials. Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or "
            "AWS_PROFILE."
        )
    why = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
    return AdapterUnavailable(
        f"{source}: the store does not answer ({why}). Check AWS_ENDPOINT_URL and the network."
    )
