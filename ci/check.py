"""`python -m rlgenkit check [NB ...] [--table]`: lint of the notebooks, freshness of outputs and pages.

The official runner (`python -m rlgenkit run NB --commit`) stores a hash of the code cells in the
notebook; here it is compared with the code cells as they are now. `--table` prints what is reported
and not gated instead: tokens, density, prose.
"""

import argparse
import sys

from ci import lint, measure
from ci.report import report
from rlgenkit.commands import committed
from rlgenkit.commands.places import RESULTS, TEMPLATE, ended, find, read, series


def problems(names: list[str]) -> list[str]:
    """What is wrong with the named notebooks, or with all of them and the generated pages."""
    rows = []
    for path in [find(n) for n in names] or [*series(), TEMPLATE]:
        found = lint.lint(path) + committed.problems(path)
        rows += [f"{path.name}: {text}" for text in found]
    if not names:
        rows += [
            f"{page}: out of date, run python -m rlgenkit report" for page in report(check=True)
        ]
        official = [p for p in series() if not committed.is_draft(read(p))]
        rows += [
            f"{p.name}: no data/results/{p.stem[:2]}.json"
            for p in official
            if not (RESULTS / f"{p.stem[:2]}.json").is_file()
        ]
    return rows


def main(argv: list[str]) -> int:
    """0 when nothing is wrong, 1 otherwise, 2 for names that are no notebooks."""
    ask = argparse.ArgumentParser(prog="rlgenkit check", description=__doc__.splitlines()[0])
    ask.add_argument("notebooks", nargs="*")
    ask.add_argument("--table", action="store_true", help="only the numbers that are not gated")
    ask.add_argument("--normalize", action="store_true", help="bring notebooks into normal form")
    args = ask.parse_args(argv)
    paths = [find(n) for n in args.notebooks] or [*series(), TEMPLATE]
    if args.table:
        print(measure.table(paths))
        return 0
    for path in paths if args.normalize else ():
        path.write_text(committed.text_of(committed.normalize(read(path))), encoding="utf-8")
    rows = problems(args.notebooks)
    print("\n".join(rows) or "ok")
    return int(bool(rows))


if __name__ == "__main__":
    sys.exit(ended(main, sys.argv[1:]))
