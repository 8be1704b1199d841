"""A published version as files for others: rows as Parquet, MLCommons Croissant 1.1 metadata, a Hugging Face card.

    rows.parquet       the version's rows, but for those removed since
    croissant.json     what it is, as Dataset Search and `mlcroissant` read it
    README.md          a dataset card, as the Hugging Face Hub shows it
    manifest.json      what the version says of itself, and the leaves of its roots: every row's id, its place in the
                       order of credit, and of removed rows the tombstone

The folder is a Hugging Face dataset repository as it stands. Text of owners is quoted where it is shown.
"""

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from openledger.core.files import write_durably, write_json_durably
from openledger.core.hashing import digest_bytes
from openledger.core.values import DatanetVersion, Row
from openledger.datanets.cards import CARD, CROISSANT, MANIFEST
from openledger.datanets.folders import make_folder
from openledger.datanets.licences import HUB_NAMES, WITHDRAWN
from openledger.datanets.registry import ContributorStatistics, Datanet
from openledger.datanets.row_schema import LICENCE, MESSAGES, RowSchema
from openledger.datanets.terms import Terms
from openledger.datanets.versions import ManifestRow

ROWS_FILE = "rows.parquet"
FILES = (ROWS_FILE, CROISSANT, CARD, MANIFEST)
CONFORMS_TO = "http://mlcommons.org/croissant/1.1"
_TYPES = {
    "string": "sc:Text",
    "int32": "sc:Integer",
    "int64": "sc:Integer",
    "double": "sc:Float",
    "bool": "sc:Boolean",
}
_UNKNOWN_TO_THE_HUB = ("PSF-2.0", "LicenseRef-openledger-training", WITHDRAWN)
_SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))
_ABOUT = {
    "row_id": "a digest of the contribution's root, the row's place in it and its salted content",
    "datanet": "the Datanet that the row belongs to",
    "contributor_id": "a digest of the key that signed it",
    "contribution_id": "the signed contribution that it came in",
    "ordinal": "its place in the contribution, from 0",
    "source": "where the contributor took it from",
    "prompt": "what is asked",
    "completion": "what is answered",
    LICENCE: "the licence that the row itself names, where it names one",
}
_CONTEXT: dict[str, Any] = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "citeAs": "cr:citeAs",
    "column": "cr:column",
    "conformsTo": "dct:conformsTo",
    "cr": "http://mlcommons.org/croissant/",
    "data": {"@id": "cr:data", "@type": "@json"},
    "equivalentProperty": "cr:equivalentProperty",
    "samplingRate": "cr:samplingRate",
    "dataBiases": "cr:dataBiases",
    "dataCollection": "cr:dataCollection",
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "dct": "http://purl.org/dc/terms/",
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "extract": "cr:extract",
    "field": "cr:field",
    "fileObject": "cr:fileObject",
    "fileProperty": "cr:fileProperty",
    "fileSet": "cr:fileSet",
    "format": "cr:format",
    "includes": "cr:includes",
    "isLiveDataset": "cr:isLiveDataset",
    "jsonPath": "cr:jsonPath",
    "key": "cr:key",
    "md5": "cr:md5",
    "parentField": "cr:parentField",
    "path": "cr:path",
    "personalSensitiveInformation": "cr:personalSensitiveInformation",
    "prov": "http://www.w3.org/ns/prov#",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "recordSet": "cr:recordSet",
    "references": "cr:references",
    "regex": "cr:regex",
    "repeated": "cr:repeated",
    "replace": "cr:replace",
    "sc": "https://schema.org/",
    "separator": "cr:separator",
    "source": "cr:source",
    "subField": "cr:subField",
    "transform": "cr:transform",
}


def write_export(
    folder: Path,
    datanet: Datanet,
    terms: Terms,
    version: DatanetVersion,
    rows: Sequence[Row],
    statistics: Sequence[ContributorStatistics],
) -> None:
    """Replace the files in `folder`. `terms` and `statistics` are those that the version was published with: as long as
    none of its rows is removed it gives the same bytes."""
    stream = io.BytesIO()
    table = datanet.row_schema.table(sorted(rows, key=lambda row: row.row_id))
    pq.write_table(table, stream, compression="zstd")
    data = stream.getvalue()
    make_folder(folder)
    write_durably(folder / ROWS_FILE, data)
    write_json_durably(folder / CROISSANT, croissant(datanet, terms, version, data, statistics))
    write_durably(folder / CARD, card(datanet, terms, version, len(rows), statistics).encode())


def write_leaves(folder: Path, manifest: Mapping[str, Any], leaves: Sequence[ManifestRow]) -> None:
    write_json_durably(folder / MANIFEST, {**manifest, "rows": [asdict(leaf) for leaf in leaves]})


def croissant(
    datanet: Datanet,
    terms: Terms,
    version: DatanetVersion,
    data: bytes,
    statistics: Sequence[ContributorStatistics],
) -> dict[str, Any]:
    """The version's metadata; `data` are the bytes of its Parquet file."""
    published = datetime.fromtimestamp(version.published_ms / 1000, UTC).isoformat()
    return {
        "@context": _CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": CONFORMS_TO,
        "name": datanet.name,
        "description": terms.description or datanet.summary,
        "license": _licence_url(terms.licence),
        "url": f"urn:openledger:datanet:{datanet.name}:{version.number}",
        "version": f"{version.number}.0.0",
        "datePublished": published,
        "keywords": [*terms.tags, "openledger"],
        "inLanguage": list(terms.languages),
        "creator": [{"@type": "sc:Person", "name": one.name} for one in statistics if one.accepted],
        "citeAs": f"{datanet.name}, version {version.number}, row root {version.row_root}",
        "rai:dataCollection": "signed contributions, each row judged by a published gate",
        "rai:dataPreprocessingProtocol": f"{version.gate_version}: duplicates, noise and repetitions are rejected",
        "rai:personalSensitiveInformation": "rows in which patterns find personal data wait for a review",
        "distribution": [_file_object(data)],
        "recordSet": [_record_set(datanet.row_schema)],
    }


def card(
    datanet: Datanet,
    terms: Terms,
    version: DatanetVersion,
    num_rows: int,
    statistics: Sequence[ContributorStatistics],
) -> str:
    """YAML front matter and Markdown. Every value from outside is quoted as JSON, which YAML reads too."""
    size = next((name for limit, name in _SIZES if num_rows < limit), "n>1M")
    front = {
        **_hub_licence(terms.licence),
        "language": list(terms.languages),
        "tags": [*terms.tags, "openledger", "croissant"],
        "pretty_name": datanet.name,
        "size_categories": [size],
        "configs": [{"config_name": "default", "data_files": ROWS_FILE}],
    }
    lines = [
        "---",
        *(f"{key}: {json.dumps(value)}" for key, value in front.items()),
        "---",
        "",
        f"# {datanet.name}",
        "",
    ]
    lines += [datanet.summary, "", *([terms.description, ""] if terms.description else [])]
    lines += [
        f"Version {version.number}, {num_rows} rows{_removed(version, num_rows)}, judged by {version.gate_version}.",
        f"Row root (RFC 9162, over the sorted row ids): `{version.row_root}`.",
        "",
        "| contributor | accepted | rejected | removed |",
        "| --- | --- | --- | --- |",
    ]
    lines += [f"| {_cell(one.name)} | {one.accepted} | {one.rejected} | {one.removed} |" for one in statistics]
    return "\n".join(lines) + "\n"


def _removed(version: DatanetVersion, num_rows: int) -> str:
    gone = version.num_rows - num_rows
    return f" ({gone} of {version.num_rows} were removed since it was published)" if gone else ""


def _file_object(data: bytes) -> dict[str, Any]:
    return {
        "@type": "cr:FileObject",
        "@id": ROWS_FILE,
        "name": ROWS_FILE,
        "contentUrl": ROWS_FILE,
        "contentSize": f"{len(data)} B",
        "encodingFormat": "application/x-parquet",
        "sha256": digest_bytes(data),
    }


def _record_set(schema: RowSchema) -> dict[str, Any]:
    fields = [_turns() if field.name == MESSAGES else _field(field) for field in schema.arrow()]
    return {"@type": "cr:RecordSet", "@id": "rows", "name": "rows", "key": {"@id": "rows/row_id"}, "field": fields}


def _field(field: Any) -> dict[str, Any]:
    return {
        "@type": "cr:Field",
        "@id": f"rows/{field.name}",
        "name": field.name,
        "description": _ABOUT.get(field.name, f"a column of the Datanet's own, {field.type}"),
        "dataType": _TYPES[str(field.type)],
        "source": {"fileObject": {"@id": ROWS_FILE}, "extract": {"column": field.name}},
    }


def _turns() -> dict[str, Any]:
    """A list of structs: one field whose parts are subfields."""
    source = {"fileObject": {"@id": ROWS_FILE}, "extract": {"column": MESSAGES}}
    parts = [
        {
            "@type": "cr:Field",
            "@id": f"rows/{MESSAGES}/{name}",
            "name": name,
            "description": about,
            "dataType": "sc:Text",
            "source": {**source, "transform": {"jsonPath": f"$[*].{name}"}},
        }
        for name, about in (("role", "system, user or assistant"), ("content", "what was said"))
    ]
    return {
        "@type": "cr:Field",
        "@id": f"rows/{MESSAGES}",
        "name": MESSAGES,
        "description": "the conversation, turn by turn, the completion last",
        "repeated": True,
        "subField": parts,
    }


def _licence_url(licence: str) -> str:
    if licence == WITHDRAWN or licence.startswith("LicenseRef-"):
        return f"urn:openledger:licence:{licence}"
    return f"https://spdx.org/licenses/{licence}"


def _hub_licence(licence: str) -> dict[str, str]:
    """As the Hub knows it; what it doesn't know is `other`, with a name."""
    if licence in _UNKNOWN_TO_THE_HUB:
        return {"license": "other", "license_name": licence.lower()}
    return {"license": HUB_NAMES.get(licence, licence.lower())}


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
