"""Folder, hub and S3-compatible store: what comes from them, and what is said where nothing comes.

The S3 store is a real server in a process of its own. The hub is a server of the test that speaks as much of
the hub's protocol as a download needs.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from cluster.adapters.content import FILES, folder_hash
from cluster.adapters.errors import AdapterRefused, AdapterUnavailable
from cluster.adapters.sources import S3Source, parse_adapter_source
from cluster.sources import FolderSource, HubSource
from deployments.adapters.fetch import fetch_files
from deployments.free_port import free_port
from tests.lora_files import write_adapter

WEIGHTS = "adapter_model.safetensors"


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    return write_adapter(tmp_path / "adapter")


@pytest.fixture
def into(tmp_path: Path) -> Path:
    (tmp_path / "into").mkdir()
    return tmp_path / "into"


def assert_fetched(adapter: Path, into: Path) -> None:
    """These two files and nothing else."""
    assert folder_hash(into) == folder_hash(adapter)
    assert {path.name for path in into.iterdir()} == set(FILES)


# folder:


def test_a_folder_is_copied_and_remembered_by_its_absolute_path(
    adapter: Path, into: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (adapter / "training_args.bin").write_bytes(b"a pickle")
    (adapter / "README.md").write_text("more")
    monkeypatch.chdir(adapter.parent)

    pinned = fetch_files(parse_adapter_source("folder:adapter"), into)

    assert pinned == FolderSource(adapter)
    assert_fetched(adapter, into)


def test_a_folder_that_is_not_there(tmp_path: Path, into: Path) -> None:
    with pytest.raises(AdapterUnavailable, match=r"none cannot be read: No such file or directory\. Check"):
        fetch_files(FolderSource(tmp_path / "none"), into)


def test_a_folder_with_pickled_weights(adapter: Path, into: Path) -> None:
    (adapter / WEIGHTS).rename(adapter / "adapter_model.bin")

    with pytest.raises(AdapterRefused, match=r"only as a pickle \(adapter_model\.bin\)"):
        fetch_files(FolderSource(adapter), into)


def test_a_link_that_leaves_the_folder(adapter: Path, into: Path, tmp_path: Path) -> None:
    (adapter / WEIGHTS).rename(tmp_path / "outside")
    (adapter / WEIGHTS).symlink_to(tmp_path / "outside")

    with pytest.raises(AdapterRefused, match="is a link that leaves its folder"):
        fetch_files(FolderSource(adapter), into)


def test_a_link_inside_the_folder_and_one_to_the_folder(adapter: Path, into: Path, tmp_path: Path) -> None:
    expected = folder_hash(adapter)
    (adapter / WEIGHTS).rename(adapter / "step-100.safetensors")
    (adapter / WEIGHTS).symlink_to("step-100.safetensors")
    (tmp_path / "newest").symlink_to(adapter)

    fetch_files(FolderSource(tmp_path / "newest"), into)

    assert folder_hash(into) == expected


def test_a_pipe_in_place_of_a_file_does_not_block(adapter: Path, into: Path) -> None:
    (adapter / WEIGHTS).unlink()
    os.mkfifo(adapter / WEIGHTS)

    with pytest.raises(AdapterRefused, match="is no regular file"):
        fetch_files(FolderSource(adapter), into)


# s3://


class S3Server:
    """A real S3-compatible server."""

    def __init__(self, url: str) -> None:
        self.url = url

    def client(self) -> Any:
        boto3 = pytest.importorskip("boto3", reason="sprat[s3] is not installed")
        return boto3.client("s3", endpoint_url=self.url, region_name="us-east-1")

    def put(self, bucket: str, prefix: str, folder: Path) -> None:
        client = self.client()
        client.create_bucket(Bucket=bucket)
        for path in folder.iterdir():
            client.upload_file(str(path), bucket, f"{prefix}/{path.name}")


@pytest.fixture(scope="module")
def s3_server() -> Iterator[S3Server]:
    pytest.importorskip("moto", reason="the S3 server of the tests is not installed")
    port = free_port()
    server = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        until_it_listens(server, port)
        yield S3Server(f"http://127.0.0.1:{port}")
    finally:
        server.terminate()
        server.wait(timeout=10)


def until_it_listens(server: subprocess.Popen[bytes], port: int) -> None:
    import socket

    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        assert server.poll() is None, "the S3 server ended"
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            time.sleep(0.1)
        else:
            return
    pytest.fail("the S3 server did not listen within 60 s")


@pytest.fixture
def s3(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> S3Server:
    """Credentials and endpoint as an operator gives them; no file of this user is read."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_server.url)
    s3_server.client().meta  # noqa: B018 - skips where boto3 is missing
    return s3_server


def test_an_adapter_in_an_s3_store(s3: S3Server, adapter: Path, into: Path) -> None:
    (adapter / "README.md").write_text("stays there")
    s3.put("adapters", "team/support/3", adapter)

    source = parse_adapter_source("s3://adapters/team/support/3/")

    assert fetch_files(source, into) == S3Source("adapters", "team/support/3")
    (adapter / "README.md").unlink()
    assert_fetched(adapter, into)


def test_an_s3_place_with_pickled_weights_or_with_nothing(s3: S3Server, adapter: Path, into: Path) -> None:
    (adapter / WEIGHTS).rename(adapter / "adapter_model.bin")
    s3.put("pickles", "support", adapter)

    with pytest.raises(AdapterRefused, match=r"s3://pickles/support: .* only as a pickle"):
        fetch_files(S3Source("pickles", "support"), into)
    with pytest.raises(AdapterRefused, match=r"s3://pickles/none: there is no adapter_config\.json and no"):
        fetch_files(S3Source("pickles", "none"), into)


def test_an_s3_bucket_that_does_not_exist(s3: S3Server, into: Path) -> None:
    with pytest.raises(AdapterUnavailable, match="there is no such bucket"):
        fetch_files(S3Source("no-such-bucket", "support"), into)


def test_an_s3_store_that_does_not_answer(s3: S3Server, into: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")

    with pytest.raises(AdapterUnavailable, match=r"the store does not answer .* Check AWS_ENDPOINT_URL"):
        fetch_files(S3Source("adapters", "support"), into)


def test_an_s3_store_without_credentials(s3: S3Server, into: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")

    with pytest.raises(AdapterUnavailable, match=r"there are no credentials\. Set AWS_ACCESS_KEY_ID"):
        fetch_files(S3Source("adapters", "support"), into)


def test_an_s3_store_that_refuses_us(into: Path, s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    with answering({}, refuse=403) as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        with pytest.raises(AdapterUnavailable, match="does not let us in"):
            fetch_files(S3Source("adapters", "support"), into)


def test_an_s3_store_that_breaks_off(
    into: Path, s3: S3Server, adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {f"/adapters/support/{name}": (adapter / name).read_bytes() for name in FILES}
    with answering(files, cut={f"/adapters/support/{WEIGHTS}"}) as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        with pytest.raises(AdapterUnavailable, match="the store does not answer"):
            fetch_files(S3Source("adapters", "support"), into)


def test_without_boto3_it_is_said_what_to_install(into: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "botocore.exceptions", None)

    with pytest.raises(
        AdapterUnavailable, match=r"needs boto3\. Install it with `pip install 'sprat\[s3\]'`"
    ):
        fetch_files(S3Source("adapters", "support"), into)


# hf:

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@contextmanager
def answering(
    files: dict[str, bytes], *, cut: frozenset[str] | set[str] = frozenset(), refuse: int = 404
) -> Iterator[str]:
    """A server with these paths; those in `cut` break off in the middle; others are refused."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self.answer()

        def do_HEAD(self) -> None:
            self.answer()

        def answer(self) -> None:
            body = files.get(self.path.partition("?")[0])
            self.send_response(refuse if body is None else 200)
            self.send_header("content-length", str(len(body or b"")))
            if body is not None:
                self.send_header("etag", f'"{hashlib.sha256(body).hexdigest()}"')
                self.send_header("x-repo-commit", COMMIT)
            elif refuse == 404:
                self.send_header("x-error-code", self.error_code())
            self.send_header("connection", "close")
            self.end_headers()
            self.close_connection = True
            if body and self.command == "GET":
                self.wfile.write(body[: len(body) // 2] if self.path.partition("?")[0] in cut else body)

        def error_code(self) -> str:
            return "RevisionNotFound" if "/me/support/" in self.path else "RepoNotFound"

        def log_message(self, *_arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def as_hub(folder: Path, revision: str = "main") -> dict[str, bytes]:
    names = sorted(path.name for path in folder.iterdir())
    siblings = [{"rfilename": name, "size": (folder / name).stat().st_size} for name in names]
    described = {"id": "me/support", "modelId": "me/support", "sha": COMMIT, "siblings": siblings}
    found = {f"/api/models/me/support/revision/{revision}": json.dumps(described).encode()}
    return found | {f"/me/support/resolve/{COMMIT}/{name}": (folder / name).read_bytes() for name in names}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
    monkeypatch.delenv("HF_TOKEN", raising=False)
    return monkeypatch


def test_an_adapter_of_the_hub_is_pinned_to_its_commit(
    hub: pytest.MonkeyPatch, adapter: Path, into: Path
) -> None:
    with answering(as_hub(adapter)) as url:
        hub.setenv("HF_ENDPOINT", url)
        pinned = fetch_files(HubSource("me/support", "main"), into)

    assert pinned == HubSource("me/support", COMMIT)
    assert_fetched(adapter, into)


def test_a_hub_repository_with_pickled_weights(hub: pytest.MonkeyPatch, adapter: Path, into: Path) -> None:
    (adapter / WEIGHTS).rename(adapter / "adapter_model.bin")
    with answering(as_hub(adapter)) as url:
        hub.setenv("HF_ENDPOINT", url)
        with pytest.raises(AdapterRefused, match="only as a pickle"):
            fetch_files(HubSource("me/support", "main"), into)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (HubSource("me/support", "none"), "the repository has no such revision"),
        (HubSource("me/none", "main"), "there is no such repository, or it is private"),
    ],
)
def test_a_repository_or_revision_that_does_not_exist(
    hub: pytest.MonkeyPatch, adapter: Path, into: Path, source: HubSource, words: str
) -> None:
    with answering(as_hub(adapter)) as url:
        hub.setenv("HF_ENDPOINT", url)
        with pytest.raises(AdapterUnavailable, match=words):
            fetch_files(source, into)


def test_a_hub_that_is_offline(hub: pytest.MonkeyPatch, into: Path) -> None:
    hub.setenv("HF_ENDPOINT", f"http://127.0.0.1:{free_port()}")

    with pytest.raises(
        AdapterUnavailable, match=r"the hub does not answer .* or add the adapter from a folder"
    ):
        fetch_files(HubSource("me/support", "main"), into)


def test_a_machine_that_is_told_to_stay_offline(hub: pytest.MonkeyPatch, into: Path) -> None:
    hub.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)

    with pytest.raises(AdapterUnavailable, match=r"switched off here \(HF_HUB_OFFLINE\)"):
        fetch_files(HubSource("me/support", "main"), into)
