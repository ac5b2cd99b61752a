"""Bring committed notebooks into their normal form: `python ci/normalize.py [--check] [FILE ...]`.

Counts 1..n, ids kept; papermill's marks, timestamps, widget state, local paths and stderr removed;
stable JSON; at most 500 KB. With --check nothing is written and the exit code tells.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from rlgenkit.commands.committed import MAX_BYTES, normalize, read, text_of  # noqa: E402
from rlgenkit.commands.places import NOTEBOOKS  # noqa: E402


def main(argv: list[str] | None = None) -> int:
    """0 when every file is normal (or was made so), 1 otherwise."""
    ask = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ask.add_argument("files", nargs="*", type=Path)
    ask.add_argument("--check", action="store_true", help="write nothing")
    args = ask.parse_args(argv)
    failed = 0
    for path in args.files or sorted(NOTEBOOKS.glob("*.ipynb")):
        text = text_of(normalize(read(path)))
        if path.read_text(encoding="utf-8") != text:
            print(f"{path.name}: {'not normal' if args.check else 'normalized'}")
            failed += args.check
            if not args.check:
                path.write_text(text, encoding="utf-8")
        if len(text.encode()) > MAX_BYTES:
            print(f"{path.name}: {len(text.encode()) // 1000} KB, more than {MAX_BYTES // 1000} KB")
            failed += 1
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
