"""cd tests && python -m zoo.listing > ../docs/pipelines.md: what is steered, and what is not."""

import importlib
import pkgutil
from collections import defaultdict

from steering.drop_in_cases import UNSUPPORTED

import zoo
from zoo.check import entries


def main() -> None:
    """Print the list in Markdown; the matrix test holds every line of it."""
    media: dict[str, set[str]] = defaultdict(set)
    for entry in entries():
        if entry.name not in UNSUPPORTED:
            media[entry.medium].add(entry.name.split("-")[0])
    total = sum(len(names) for names in media.values())
    print(
        "# Pipelines that are steered\n\nMade by `cd tests && python -m zoo.listing`. Each is of "
        f"the installed diffusers, built tiny; {total} classes pass tests/steering/test_matrix.py: "
        "looking changes nothing bit for bit, what belongs to a particle goes with it, and the "
        "pipeline is the same before and after.\n"
    )
    for medium, names in sorted(media.items()):
        print(f"**{medium}** ({len(names)}): {', '.join(sorted(names))}\n")
    print("Not supported as called there; the message holds these words:\n")
    for name, words in UNSUPPORTED.items():
        print(f"- {name}: {words}")
    print("\nNot built for the test:\n")
    for module in pkgutil.iter_modules(zoo.__path__):
        for name, why in getattr(
            importlib.import_module(f"zoo.{module.name}"), "SKIPPED", {}
        ).items():
            print(f"- {name}: {why}")


if __name__ == "__main__":
    main()
