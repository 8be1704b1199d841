"""The Datanets' table of a few minutes: appends, reads, ingest, eight writers beside plain Parquet, Lance used bare and
Delta (where it is installed), and near duplicates.

python benchmarks/bench_datanets.py

`benchmarks/datanets.py` has the same parts with more rows, and the cost curve, a newcomer beside large senders, and Ray
Data.
"""

from argparse import Namespace

from datanets import contributors, duplicates, processes, storage, writers


def main() -> None:
    arguments = Namespace(rows=50_000, ingested=20_000, turns=3)
    for part in (storage, processes, contributors, writers, duplicates):
        part(arguments)


if __name__ == "__main__":
    main()
