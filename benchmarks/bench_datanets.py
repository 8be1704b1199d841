"""The Datanets' table of a few minutes: appends, reads and ingest beside plain Parquet and Lance used bare.

    python benchmarks/bench_datanets.py

`benchmarks/datanets.py` has the same parts with more rows, and the cost curve, the near duplicates and eight writers.
"""

from argparse import Namespace

from datanets import ingest, storage


def main() -> None:
    arguments = Namespace(rows=50_000, ingested=10_000)
    storage(arguments)
    ingest(arguments)


if __name__ == "__main__":
    main()
