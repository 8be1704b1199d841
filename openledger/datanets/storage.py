"""Where an installation's rows lie: in folders of its own, one a shard, or in an object store, at a URI.

Decided when the first shard is started, and kept in `storage.json`: rows that were acknowledged are looked for nowhere
else.
"""

import json
import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from openledger.core.errors import Conflict, Corrupt, InvalidInput
from openledger.core.files import write_json_durably

SETTING = "OPENLEDGER_STORAGE"
_URI = re.compile(r"(s3|gs|az|abfss?|file-object-store)://[^\s?#]+[^\s?#/]")
_RECORD = "storage.json"
_PATIENCE_S = 10
_log = logging.getLogger(__name__)


def storage_uri(environment: Mapping[str, str]) -> str:
    """The URI that OPENLEDGER_STORAGE names; empty where rows stay on the local disk. Raises InvalidInput."""
    uri = environment.get(SETTING, "").strip().rstrip("/")
    if uri and not _URI.fullmatch(uri):
        raise InvalidInput(
            f"{SETTING} is {uri!r}, which is no place in an object store",
            code="invalid_storage",
            param=SETTING,
            fix="s3://BUCKET/PATH, gs://BUCKET/PATH or az://CONTAINER/PATH; keys and endpoint come from the store's own"
            " variables, such as AWS_ACCESS_KEY_ID and AWS_ENDPOINT",
        )
    return uri


def check_forgets(uri: str, environment: Mapping[str, str]) -> None:
    """Raises Conflict (`bucket_keeps_versions`) for an S3 bucket that keeps the versions of its objects: rows that are
    taken back would stay there. Where that can't be seen, as with other stores, a warning says so."""
    if not uri.startswith("s3://"):
        return
    bucket = uri.removeprefix("s3://").partition("/")[0]
    try:
        from minio.error import MinioException
        from urllib3.exceptions import HTTPError
    except ImportError:
        _log.warning("whether %s keeps deleted rows isn't checked: pip install 'openledger[s3]'", bucket)
        return
    try:
        status = _client(environment).get_bucket_versioning(bucket).status
    except (MinioException, HTTPError, OSError, ValueError) as error:
        _log.warning("whether %s keeps deleted rows can't be seen: %s", bucket, error)
        return
    if status == "Enabled":
        raise Conflict(
            f"the bucket {bucket} keeps the versions of its objects: rows that are taken back would stay in it",
            code="bucket_keeps_versions",
            param=SETTING,
            fix="name a bucket without versioning and object lock; what lies in this one is moved by an export",
        )


def _client(environment: Mapping[str, str]) -> Any:
    """With Lance's endpoint and AWS's own variables, or the instance's role. Who doesn't answer is not waited for."""
    from minio import Minio
    from minio.credentials import ChainedProvider, EnvAWSProvider, IamAwsProvider
    from urllib3 import PoolManager

    scheme, _, host = environment.get("AWS_ENDPOINT", "https://s3.amazonaws.com").rpartition("://")
    return Minio(
        host.rstrip("/"),
        secure=scheme != "http",
        region=environment.get("AWS_REGION") or environment.get("AWS_DEFAULT_REGION") or "us-east-1",
        credentials=ChainedProvider([EnvAWSProvider(), IamAwsProvider()]),
        http_client=PoolManager(timeout=_PATIENCE_S, retries=False),
    )


def shard_places(folder: Path, num_shards: int, uri: str = "") -> list[Path] | list[str]:
    """Of `num_shards` shards, and of those that were more before. Raises Conflict (`storage_changed`) where the rows
    lie elsewhere than at `uri`."""
    known = _known(folder)
    if known is not None and known["uri"] != uri:
        raise Conflict(
            f"the rows of {folder} lie in {known['uri'] or 'its own folders'}, not in {uri or 'its own folders'}",
            code="storage_changed",
            param=SETTING,
            fix=f"set {SETTING} to {known['uri']!r}; to move, export the versions and contribute them anew",
        )
    count = max(num_shards, int(known["num_shards"]) if known else 0, len(list(folder.glob("shard-*"))))
    if known != (now := {"uri": uri, "num_shards": count}):
        folder.mkdir(parents=True, exist_ok=True)
        write_json_durably(folder / _RECORD, now)
    if uri:
        return [f"{uri}/shard-{number}" for number in range(count)]
    return [folder / f"shard-{number}" for number in range(count)]


def _known(folder: Path) -> dict[str, int | str] | None:
    path = folder / _RECORD
    if not path.exists():
        local = any(folder.glob("shard-*"))
        return {"uri": "", "num_shards": 0} if local else None
    try:
        told = json.loads(path.read_text())
        return {"uri": str(told["uri"]), "num_shards": int(told["num_shards"])}
    except (ValueError, KeyError, TypeError) as error:
        raise Corrupt(f"{path} can't be read: {error}", code="corrupt_storage_record", param=str(path)) from error
