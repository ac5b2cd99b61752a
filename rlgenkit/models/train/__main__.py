"""`python -m rlgenkit.models.train [name ...]`: train the embedded models from nothing, in order.

Without a name, all of them. Each resumes from build/models and takes one CPU machine of 2 cores
the time that its model card states.
"""

import importlib
import sys

ORDER = ("autoencoder", "reader", "flow", "epsilon", "consistency", "clip",
         "aesthetic_proxy", "arithmetic", "evaluate", "cards")


def main(names: list[str]) -> int:
    """Run the named trainings; exit status 2 for a name that does not exist."""
    wrong = [n for n in names if n not in ORDER + ("all",)]
    if wrong:
        print(f"unknown model {wrong[0]!r}; choose from {', '.join(ORDER)} or all", file=sys.stderr)
        return 2
    for name in [n for n in ORDER if not names or "all" in names or n in names]:
        if name == "aesthetic_proxy":
            from ...rewards.proxy import train_aesthetic_proxy
            print(train_aesthetic_proxy())
        else:
            importlib.import_module(f".{name}", __package__).main()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
