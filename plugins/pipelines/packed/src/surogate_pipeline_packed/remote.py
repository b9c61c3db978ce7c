"""Objects in S3 and Google Cloud Storage, through fsspec: listed, then read as a stream.

Credentials and endpoints come from the environment, as the clouds' own tools take them; nothing about them is in a configuration.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from attrs import evolve, frozen

from surogate_core.errors import DataError, SurogateError
from surogate_pipeline_packed.files import BUFFER, Raw, Reader, Stored
from surogate_pipeline_packed.library import first_line

AHEAD = 8 << 20  # bytes of one request


@frozen
class Cloud:
    """What reads addresses of one scheme, where it finds credentials, and the variable that names a file of them."""

    package: str
    credentials: str
    key_file: str = ""


CLOUDS = {
    "s3": Cloud(
        "s3fs",
        "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE; AWS_ENDPOINT_URL for a service other than Amazon's; "
        "FSSPEC_S3_ANON=true for a public bucket",
    ),
    "gs": Cloud(
        "gcsfs",
        "set GOOGLE_APPLICATION_CREDENTIALS to a service account's file, or log in with gcloud; FSSPEC_GS_TOKEN=anon for a public "
        "bucket",
        "GOOGLE_APPLICATION_CREDENTIALS",
    ),
}
NO_CREDENTIALS = (
    "NoCredentialsError",
    "PartialCredentialsError",
    "CredentialRetrievalError",
    "ProfileNotFound",
    "DefaultCredentialsError",
    "RefreshError",
)


def remote_files(address: str, where: str) -> list[Stored]:
    """The file at ``address``, or all below it, by name. Raises DataError: another scheme, the package is missing, no access, no
    bucket, no object."""
    scheme = address.partition("://")[0]
    cloud = CLOUDS.get(scheme)
    if cloud is None:
        known = ", ".join(f"{name}://" for name in CLOUDS)
        raise DataError(f"addresses of kind {scheme}:// cannot be read", where, f"use one of {known}, or download the files")
    if find_spec(cloud.package) is None:
        raise DataError(f"{scheme}:// is read with {cloud.package}, which is not installed", where, f"pip install {cloud.package}")
    key_file = os.environ.get(cloud.key_file) if cloud.key_file else None
    if key_file and not Path(key_file).is_file():  # gcsfs would go on as nobody
        raise DataError(f"there are no usable credentials for {scheme}://: no file {key_file}", cloud.key_file, cloud.credentials)
    import fsspec

    with told(address, where):
        # A new one: an instance that is kept would keep the credentials and listings of its first use.
        system = fsspec.filesystem(scheme, skip_instance_cache=True)
        _sign_in(system)
        root = system._strip_protocol(address)
        found: dict[str, dict[str, Any]] = system.find(root, detail=True)
    if not found:
        raise DataError("there is no such object, and none below it", where, "check the address")
    files = []
    for key, about in sorted(found.items()):
        name = PurePosixPath(key).name if key == root else str(PurePosixPath(key).relative_to(root))
        place, state = f"{scheme}://{key}", about.get("ETag") or about.get("etag")
        origin = (f"{place} {state} {about['size']}",) if state else ()
        files.append(Stored(name, place, about["size"] or 0, partial(_open, system, key), origin=origin))
    return files


def _sign_in(system: Any) -> None:
    """Ask for a token once. gcsfs asks again and again for half a minute when it is refused, as it does when a network fails."""
    refresh = getattr(getattr(system, "credentials", None), "maybe_refresh", None)
    try:
        if refresh is not None:
            refresh()
    except Exception as error:  # gcsfs's HttpError, or any of Google's
        if getattr(error, "code", None) in (401, 403):
            raise


def guarded(reader: Reader, address: str, where: str) -> Reader:
    """The same reader, whose failures on the way are told like those of the listing."""

    def raw() -> Iterator[Raw]:
        with told(address, where):
            yield from reader.raw()

    def count() -> int:
        with told(address, where):
            return reader.count()

    # The number of rows is in a parquet file's footer; of all others it would cost another reading.
    return evolve(reader, raw=raw, count=count, countable=reader.name.lower().endswith(".parquet"))


def _open(system: Any, key: str) -> BinaryIO:
    # fsspec's files read lines in Python; io's buffer does it in C.
    return io.BufferedReader(system.open(key, "rb", block_size=AHEAD), BUFFER)


@contextmanager
def told(address: str, where: str) -> Iterator[None]:
    """Turns what the clouds' packages raise into a DataError."""
    scheme, _, rest = address.partition("://")
    bucket = rest.partition("/")[0]
    credentials = CLOUDS[scheme].credentials
    try:
        yield
    except SurogateError:
        raise
    except FileNotFoundError as error:
        raise DataError(f'there is no bucket "{bucket}", or the object is gone', where, "check the address") from error
    except Exception as error:  # botocore's, aiohttp's, Google's: no common class
        what = first_line(error) or type(error).__name__
        if type(error).__name__ in NO_CREDENTIALS:
            raise DataError(f"there are no usable credentials for {scheme}://: {what}", where, credentials) from error
        if isinstance(error, PermissionError) or getattr(error, "code", None) in (401, 403):
            raise DataError(f'access to bucket "{bucket}" is refused: {what}', where, credentials) from error
        what = f"{scheme}:// cannot be read: {type(error).__name__}: {what}"
        raise DataError(what, where, "check the network and the endpoint; then start again") from error
