"""What the makers of the packs share."""

import csv
from pathlib import Path


def write_rows(path: Path, header: tuple, rows: list[tuple]) -> None:
    """A CSV file with one header line and plain line ends."""
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows([header, *rows])
