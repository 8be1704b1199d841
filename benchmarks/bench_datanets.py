"""The Datanets' table of a few minutes: appends, reads, ingest, eight writers beside plain Parquet, Lance used bare and
Delta (where it is installed), near duplicates, and a scan into Ray Data beside Ray's own reader.

python benchmarks/bench_datanets.py

`benchmarks/datanets.py` has the same parts with more rows (1,000 rows taken from a million: `storage --rows 1000000`),
and what takes longer: the cost curve, a newcomer beside large senders, all installed packages' documentation strings.
"""

from argparse import Namespace

from datanets import contributors, duplicates, processes, raydata, storage, writers


def main() -> None:
    arguments = Namespace(rows=50_000, ingested=20_000, turns=3)
    for part in (storage, processes, contributors, writers, duplicates):
        part(arguments)
    raydata(Namespace(rows=60_000))


if __name__ == "__main__":
    main()
