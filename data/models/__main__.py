"""`python -m rlgenkit models [name ...]`: train the embedded models from nothing, in order.

Without a name, all of them. Each resumes from build/models and takes one CPU machine of 2 cores
the time that its model card states. `--device cuda --batch 512 --steps 8000 --scenes 196608` trains
the generators on a GPU.
"""

import argparse
import importlib
import inspect
import sys

ORDER = (
    "autoencoder",
    "reader",
    "flow",
    "few_step",
    "epsilon",
    "consistency",
    "clip",
    "aesthetic_proxy",
    "arithmetic",
    "vision_language",
    "evaluate",
    "cards",
)


def parse(words: list[str]) -> tuple[list[str], dict[str, int | str]]:
    """The names to train and the settings given; exit status 2 with one sentence for bad input."""
    parser = argparse.ArgumentParser(
        prog="rlgenkit models", allow_abbrev=False, usage=argparse.SUPPRESS
    )
    parser.add_argument("names", nargs="*")
    for setting in ("steps", "batch", "scenes"):
        parser.add_argument(f"--{setting}", type=int)
    parser.add_argument("--device")
    parser.add_argument("--further", action="store_const", const=True)
    found = vars(parser.parse_args(words))
    names = found.pop("names")
    for name in names:
        if name not in ORDER + ("all",):
            parser.exit(2, f"unknown model {name!r}; choose from {', '.join(ORDER)} or all\n")
    return names, {k: v for k, v in found.items() if v is not None}


def train(name: str, settings: dict[str, int | str]) -> None:
    """Train one model; settings that its training does not have stop it."""
    place = name if name in ("evaluate", "cards") else f"{name}.train"
    function = importlib.import_module(f"data.models.{place}").main
    unknown = [k for k in settings if k not in inspect.signature(function).parameters]
    if unknown:
        raise SystemExit(f"{name} has no setting --{unknown[0]}")
    if str(settings.get("device")).startswith("cuda"):
        import torch

        torch.set_float32_matmul_precision("high")  # TF32
    result = function(**settings)
    if result is not None:
        print(result)


def main(words: list[str]) -> int:
    """Run the named trainings in ORDER."""
    names, settings = parse(words)
    for name in [n for n in ORDER if not names or "all" in names or n in names]:
        train(name, settings)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
