"""Do the notebooks still compute what they did? `python -m ci.goldens [--write] [--jobs N] [NB ...]`.

Runs the quick profile of every notebook on one thread and digests each phase (metrics and final
state), each cached result, each number and the values of each claim. `--write` stores the digests
in ci/goldens.json; without it they are compared: a digest that differs is an error, one that is
gone or new is told. Digests belong to one kind of processor and one set of pins.
"""

import argparse
import hashlib
import json
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ci.series import run_one
from rlgenkit.commands.places import BUILD, ROOT, InputError, ended, find, series

TARGET = ROOT / "ci" / "goldens.json"


def digest(value) -> str:
    """Ten hexadecimal digits over nested dicts, lists, tensors, arrays and plain values."""
    total = hashlib.sha256()
    _feed(value, total)
    return total.hexdigest()[:10]


def _feed(value, total) -> None:
    if hasattr(value, "detach"):
        value = value.detach().cpu().contiguous()
        value = value.float().numpy() if str(value.dtype) == "torch.bfloat16" else value.numpy()
    if hasattr(value, "tobytes"):
        total.update(f"{value.dtype} {value.shape}".encode() + value.tobytes())
    elif isinstance(value, dict):
        for key in sorted(value.keys() - {"clock"}, key=str):  # seconds differ from run to run
            total.update(str(key).encode())
            _feed(value[key], total)
    elif isinstance(value, (list, tuple)):
        total.update(f"[{len(value)}".encode())
        for item in value:
            _feed(item, total)
    else:
        total.update(repr(value).encode())


def digests(folder: Path) -> dict[str, str]:
    """What a run folder holds: "phase x", "result x", "number x", "claim x" -> digest."""
    from rlgenkit.workbook import checkpoint

    found, lines = {}, {}
    for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        lines.setdefault(row.pop("phase"), []).append(row)
    for name, rows in lines.items():
        found[f"metrics {name}"] = digest(rows)
    for kind, word, part in (("phases", "state", "state"), ("cache", "result", "value")):
        for path in sorted((folder / kind).rglob("*.safetensors")):
            name = path.relative_to(folder / kind).as_posix().rsplit(".", 2)[0]  # without its key
            found[f"{word} {name}"] = digest(checkpoint.load(path)[part])
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    for name, value in results["numbers"].items():
        found[f"number {name}"] = digest(value)
    for claim in results["claims"]:
        if claim["values"]:
            found[f"claim {claim['id']}"] = digest(claim["values"])
    return found


def measure(path: Path) -> dict[str, str]:
    """Digests of one fresh quick run on one thread, network blocked."""
    folder = BUILD / "goldens" / path.stem
    shutil.rmtree(folder, ignore_errors=True)
    done = run_one(path, folder)
    if done.code:
        raise InputError(f"{path.stem}: {done.sentence}")
    print(f"{path.stem:28} {done.seconds:6.1f} s", file=sys.stderr, flush=True)
    return digests(folder)


def compare(known: dict[str, str], now: dict[str, str]) -> dict[str, list[str]]:
    """Names whose digest changed, is gone, or is new."""
    return {
        "changed": sorted(k for k in known.keys() & now.keys() if known[k] != now[k]),
        "gone": sorted(known.keys() - now.keys()),
        "new": sorted(now.keys() - known.keys()),
    }


def main(argv: list[str]) -> int:
    """0 when nothing changed."""
    ask = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ask.add_argument("notebooks", nargs="*")
    ask.add_argument("--write", action="store_true")
    ask.add_argument("--jobs", type=int, default=2)
    args = ask.parse_args(argv)
    paths = [find(name) for name in args.notebooks] or series()
    with ThreadPoolExecutor(args.jobs) as pool:
        now = dict(zip([p.stem for p in paths], pool.map(measure, paths)))
    known = json.loads(TARGET.read_text(encoding="utf-8"))
    if args.write:
        text = json.dumps({**known, **now}, indent=1, sort_keys=True) + "\n"
        TARGET.write_text(text, encoding="utf-8")
        return 0
    failed = False
    for stem, found in now.items():
        for kind, names in compare(known.get(stem, {}), found).items():
            failed |= kind == "changed" and bool(names)
            if names:
                print(f"{stem}: {len(names)} {kind}: {', '.join(names)}")
    print("goldens differ" if failed else f"{len(now)} notebooks: goldens unchanged")
    return int(failed)


if __name__ == "__main__":
    sys.exit(ended(main, sys.argv[1:]))
