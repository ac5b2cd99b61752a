"""Do the committed outputs belong to the committed sources? `python ci/fresh.py [FILE ...]`.

The official runner (`python -m rlgenkit run NB --commit`) stores a hash of the code cells in the
notebook; here it is compared with the code cells as they are now. Generated pages are compared too.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from rlgenkit.commands.committed import freshness, read  # noqa: E402
from rlgenkit.commands.places import RESULTS, series  # noqa: E402
from rlgenkit.commands.report import report  # noqa: E402


def main(files: list[str]) -> int:
    """0 when everything is fresh; prints what is not."""
    found = []
    for path in [Path(f) for f in files] or series():
        found += [f"{path.name}: {text}" for text in freshness(read(path), path.stem)]
        if not files and not (RESULTS / f"{path.stem[:2]}.json").is_file():
            found.append(f"{path.name}: no data/results/{path.stem[:2]}.json")
    if not files:
        found += [f"{page}: run python -m rlgenkit report" for page in report(check=True)]
    print("\n".join(found) or "fresh")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main([a for a in sys.argv[1:] if a != "--check"]))
