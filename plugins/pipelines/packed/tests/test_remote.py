"""Rows from S3 and Google Cloud Storage, against servers on this machine that speak their protocols."""

from __future__ import annotations

import gzip
import json
import os
import sys
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest
from surogate_pipeline_packed.read import Source, open_source

from surogate_core.config.options import DatasetOptions
from surogate_core.errors import DataError, Problem

ROWS = [{"text": f"row {i}\u2028{'ü' * i}"} for i in range(20)]
LINES = b"".join(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in ROWS)
OBJECTS = {
    "lines.jsonl": LINES,
    "packed/a.jsonl.gz": gzip.compress(LINES[: LINES.index(b"\n") + 1]),
    "packed/deep/b.jsonl.gz": gzip.compress(LINES[LINES.index(b"\n") + 1 :]),
    "packed/README.md": b"# about",
    "packed/.hidden/c.jsonl.gz": b"",
    "array/rows.json": json.dumps(ROWS).encode(),
    "splits/train-00000-of-00001.jsonl": LINES,
    "splits/test-00000-of-00001.jsonl": LINES[: LINES.index(b"\n") + 1],
    "mixed/a.jsonl": LINES,
    "mixed/b.txt": b"x",
    "torn.jsonl": LINES + b"{",
}
SCHEMES = ("s3", "gs")
ASKED: list[str] = []  # of the server of tokens
both = pytest.mark.parametrize("scheme", SCHEMES)


def opened(address: str, **options: Any) -> Source:
    return open_source(DatasetOptions(path=address, type="text", **options), "datasets[0]", seed=3)


def columns(source: Source) -> list[Any]:
    return [row.columns for row in source.rows()]


def refused(address: str, **options: Any) -> Problem:
    with pytest.raises(DataError) as caught:
        columns(opened(address, **options))
    (problem,) = caught.value.problems
    assert problem.where.startswith(f'datasets[0].path = "{address}"')
    return problem


def parquet_bytes(directory: Path) -> bytes:
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(pyarrow.Table.from_pylist(ROWS), directory / "rows.parquet")
    return (directory / "rows.parquet").read_bytes()


@pytest.fixture(scope="module")
def s3_server() -> Iterator[str]:
    pytest.importorskip("s3fs", reason="s3fs is not there: make setup")
    moto = pytest.importorskip("moto.server", reason="moto is not there: make setup")
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture(scope="module")
def gs_server() -> Iterator[str]:
    emulator = pytest.importorskip("gcp_storage_emulator.server", reason="gcp-storage-emulator is not there: make setup")
    # Read when gcsfs is imported: with it, gcsfs asks a gRPC service that the emulator does not have, and waits a minute for it.
    os.environ["GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT"] = "false"
    pytest.importorskip("gcsfs", reason="gcsfs is not there: make setup")
    server = emulator.create_server("127.0.0.1", 0, in_memory=True)
    server.start()
    yield f"http://127.0.0.1:{server._api._httpd.server_port}"
    server.stop()


@pytest.fixture
def cloud(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, scheme: str) -> None:
    """A filled bucket `corpora`, and the environment in which it is found."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    objects = {**OBJECTS, "rows.parquet": parquet_bytes(tmp_path)}
    endpoint = request.getfixturevalue(f"{scheme}_server")
    if scheme == "s3":
        for name, value in {
            "AWS_ENDPOINT_URL": endpoint,
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_CONFIG_FILE": str(tmp_path / "none"),
            "HOME": str(tmp_path),
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_MAX_ATTEMPTS": "1",
        }.items():
            monkeypatch.setenv(name, value)
        for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_SHARED_CREDENTIALS_FILE"):
            monkeypatch.delenv(name, raising=False)
        put(f"{endpoint}/corpora", b"")
        for name, content in objects.items():
            put(f"{endpoint}/corpora/{name}", content)
        return
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", endpoint)
    monkeypatch.setenv("NO_GCE_CHECK", "true")
    monkeypatch.setenv("CLOUDSDK_CONFIG", str(tmp_path / "none"))
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(service_account(tmp_path, request.getfixturevalue("token_server"))))
    import gcsfs

    system = gcsfs.core.GCSFileSystem(token="anon", skip_instance_cache=True)
    if not system.exists("corpora"):
        system.mkdir("corpora")
    for name, content in objects.items():
        system.pipe(f"corpora/{name}", content)


def put(address: str, content: bytes, method: str = "PUT") -> None:
    headers = {"Authorization": "AWS4-HMAC-SHA256 Credential=key/20200101/us-east-1/s3/aws4_request", "Content-Type": "a/b"}
    with urllib.request.urlopen(urllib.request.Request(address, content, headers, method=method)):
        pass


@pytest.fixture(scope="module")
def token_server() -> Iterator[str]:
    """Where service accounts get their tokens: /good gives one, /bad refuses."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            ASKED.append(self.path)
            self.rfile.read(int(self.headers["Content-Length"]))
            good = self.path == "/good"
            answer = {"access_token": "t", "expires_in": 3600, "token_type": "Bearer"} if good else {"error": "invalid_grant"}
            self.send_response(200 if good else 400)
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(json.dumps(answer).encode())

        def log_message(self, format: str, *arguments: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


def service_account(directory: Path, tokens: str, kind: str = "good") -> Path:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import rsa

    pem = rsa.generate_private_key(65537, 2048).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path = directory / f"{kind}.json"
    account = {"type": "service_account", "client_email": "a@b.c", "private_key": pem.decode(), "token_uri": f"{tokens}/{kind}"}
    path.write_text(json.dumps(account | {"project_id": "p", "private_key_id": "1", "client_id": "2"}))
    return path


@both
@pytest.mark.usefixtures("cloud")
@pytest.mark.parametrize("path", ["lines.jsonl", "packed", "packed/", "array", "array/rows.json", "rows.parquet", "splits"])
def test_rows_are_those_of_the_same_files_on_disk(scheme: str, path: str) -> None:
    source = opened(f"{scheme}://corpora/{path}")
    assert columns(source) == ROWS
    assert columns(source) == ROWS  # again, from the start
    assert source.count() == len(ROWS)
    assert source.size > 100
    drawn = columns(opened(f"{scheme}://corpora/{path}", samples=5))
    assert len(drawn) == 5
    assert drawn == [row for row in ROWS if row in drawn]


@both
@pytest.mark.usefixtures("cloud")
def test_files_are_named_below_the_address(scheme: str) -> None:
    assert opened(f"{scheme}://corpora/packed").files == ("a.jsonl.gz", "deep/b.jsonl.gz")
    assert opened(f"{scheme}://corpora/splits", split="test").files == ("test-00000-of-00001.jsonl",)
    rows = list(opened(f"{scheme}://corpora/torn.jsonl").rows())
    assert [(row.number, row.reason) for row in rows if row.columns is None] == [(21, "not JSON")]


@both
@pytest.mark.usefixtures("cloud")
def test_another_content_is_another_origin(scheme: str) -> None:
    ((one,),) = opened(f"{scheme}://corpora/lines.jsonl").origins
    ((same,),) = opened(f"{scheme}://corpora/lines.jsonl").origins
    ((other,),) = opened(f"{scheme}://corpora/torn.jsonl").origins
    assert one == same
    assert str(one).startswith(f"{scheme}://corpora/lines.jsonl ")
    assert str(one).split(" ", 1)[1] != str(other).split(" ", 1)[1]


@both
@pytest.mark.usefixtures("cloud")
def test_what_is_not_there(scheme: str) -> None:
    problem = refused(f"{scheme}://corpora/nothing.jsonl")
    assert (problem.what, problem.how) == ("there is no such object, and none below it", "check the address")
    problem = refused(f"{scheme}://nowhere/lines.jsonl")
    assert problem.what == 'there is no bucket "nowhere", or the object is gone'
    assert refused(f"{scheme}://corpora/mixed").what == "the directory holds files of several kinds: .jsonl, .txt"
    assert refused(f"{scheme}://corpora/splits", split="validation").what == 'there is no split "validation"'
    assert refused(f"{scheme}://corpora/lines.jsonl", subset="x").what == "files have no subsets"


@pytest.mark.parametrize("scheme", ["s3"])
@pytest.mark.usefixtures("cloud")
def test_a_wrong_key_for_s3(scheme: str, s3_server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def check_keys(after: str) -> None:
        headers = {"Content-Type": "text/plain"}
        urllib.request.urlopen(urllib.request.Request(f"{s3_server}/moto-api/reset-auth", after.encode(), headers)).close()

    check_keys("0")
    try:
        problem = refused("s3://corpora/lines.jsonl")
    finally:
        check_keys("inf")
    assert (
        problem.what == 'access to bucket "corpora" is refused: The AWS Access Key Id you provided does not exist in our records.'
    )
    assert problem.how.startswith("set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE; AWS_ENDPOINT_URL")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    problem = refused("s3://corpora/lines.jsonl")
    assert problem.what == "there are no usable credentials for s3://: Unable to locate credentials"
    assert problem.how.startswith("set AWS_ACCESS_KEY_ID")


@pytest.mark.parametrize("scheme", ["s3"])
@pytest.mark.usefixtures("cloud")
def test_no_server(scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    problem = refused("s3://corpora/lines.jsonl")
    assert problem.what.startswith("s3:// cannot be read: EndpointConnectionError: Could not connect to the endpoint URL")
    assert problem.how == "check the network and the endpoint; then start again"


@pytest.mark.parametrize("scheme", ["s3"])
@pytest.mark.usefixtures("cloud")
def test_an_object_that_goes_away_while_it_is_read(scheme: str, s3_server: str) -> None:
    put(f"{s3_server}/corpora/gone.jsonl", LINES)
    source = opened("s3://corpora/gone.jsonl")
    put(f"{s3_server}/corpora/gone.jsonl", b"", "DELETE")
    with pytest.raises(DataError, match='no bucket "corpora", or the object is gone'):
        columns(source)


@pytest.mark.parametrize("scheme", ["gs"])
@pytest.mark.usefixtures("cloud")
def test_credentials_for_gs_that_are_not_there(scheme: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "missing.json"))
    with pytest.raises(DataError) as caught:
        opened("gs://corpora/lines.jsonl")
    (problem,) = caught.value.problems
    assert problem.what == f"there are no usable credentials for gs://: no file {tmp_path / 'missing.json'}"
    assert problem.where == "GOOGLE_APPLICATION_CREDENTIALS"
    assert problem.how.startswith("set GOOGLE_APPLICATION_CREDENTIALS to a service account's file")


@pytest.mark.parametrize("scheme", ["gs"])
@pytest.mark.usefixtures("cloud")
def test_a_wrong_key_for_gs(scheme: str, token_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(service_account(tmp_path, token_server, "bad")))
    ASKED.clear()
    problem = refused("gs://corpora/lines.jsonl")
    assert problem.what == 'access to bucket "corpora" is refused: Invalid Credentials, 401'
    assert problem.how.startswith("set GOOGLE_APPLICATION_CREDENTIALS to a service account's file")
    assert ASKED == ["/bad"]  # gcsfs asks six times, in half a minute


@pytest.mark.parametrize("scheme", ["s3"])
@pytest.mark.usefixtures("cloud")
@pytest.mark.parametrize("name", ["large.jsonl", "large.parquet"])
def test_what_does_not_fit_is_read_as_it_comes(
    scheme: str, name: str, s3_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first rows cost a few requests, not the object; nothing is copied to the disk."""
    import pyarrow
    from pyarrow import parquet

    random = np.random.default_rng(0)
    rows = [{"text": f"{i} {random.bytes(2000).hex()}"} for i in range(5000)]
    path = tmp_path / name
    if name.endswith(".jsonl"):
        path.write_bytes(b"".join(json.dumps(row).encode() + b"\n" for row in rows))
    else:
        parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=len(rows))
    content = path.read_bytes()
    path.unlink()
    put(f"{s3_server}/corpora/{name}", content)
    from fsspec.caching import BaseCache

    fetched: list[int] = []
    made = BaseCache.__init__

    def counting(self: Any, blocksize: int, fetcher: Any, size: int) -> None:
        def fetch(start: int, stop: int) -> bytes:
            fetched.append(stop - start)
            return fetcher(start, stop)

        made(self, blocksize, fetch, size)

    monkeypatch.setattr(BaseCache, "__init__", counting)
    before = {path for path in tmp_path.rglob("*") if path.is_file()}
    source = opened(f"{scheme}://corpora/{name}")
    found = source.rows()
    assert [next(found).columns for _ in range(100)] == rows[:100]
    assert 0 < sum(fetched) < len(content) / 2
    assert {path for path in tmp_path.rglob("*") if path.is_file()} == before
    assert source.countable == name.endswith(".parquet")  # progress does not read the object twice


@both
def test_a_missing_package_is_named_with_the_line_that_installs_it(scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    package = {"s3": "s3fs", "gs": "gcsfs"}[scheme]
    monkeypatch.delitem(sys.modules, package, raising=False)
    monkeypatch.setattr("surogate_pipeline_packed.remote.find_spec", lambda name: None)
    problem = refused(f"{scheme}://corpora/lines.jsonl")
    assert problem.what == f"{scheme}:// is read with {package}, which is not installed"
    assert problem.how == f"pip install {package}"


def test_other_addresses_are_refused() -> None:
    problem = refused("https://host/data.jsonl")
    assert problem.what == "addresses of kind https:// cannot be read"
    assert problem.how == "use one of s3://, gs://, or download the files"
