"""Every method on every family: two updates of a tiny pipeline of the real classes.

``python tests/matrix.py docs/matrix.md`` writes the table, as `make matrix` does. No cell knows its
method or its family; what cannot be is what the library itself refuses, see `REFUSALS`.
"""

import importlib
import inspect
import pkgutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol

ROOT = Path(__file__).resolve().parent
sys.path[:0] = [str(ROOT), str(ROOT / "pipelines")]

import torch  # noqa: E402
from families import FAMILIES  # noqa: E402
from family import Family, tensor  # noqa: E402
from peft import PeftModel  # noqa: E402
from sequence_families import ROWS as SEQUENCES  # noqa: E402
from torch import Tensor  # noqa: E402
from tqdm import tqdm  # noqa: E402

import diffreward.algorithms  # noqa: E402
from diffreward.algorithm import Algorithm, Batch  # noqa: E402
from diffreward.checks import RATIO_TOLERANCE  # noqa: E402
from diffreward.policy import LoRA, Policy  # noqa: E402
from diffreward.samples import Samples  # noqa: E402


def methods() -> list[type[Algorithm]]:
    """All algorithms of the package."""
    found = [
        importlib.import_module(f"diffreward.algorithms.{module.name}")
        for module in pkgutil.iter_modules(diffreward.algorithms.__path__)
    ]
    classes = (
        value
        for module in found
        for value in vars(module).values()
        if inspect.isclass(value) and value.__module__ == module.__name__
    )
    return [kind for kind in classes if issubclass(kind, Algorithm)]


REFUSALS: Mapping[str, str] = {
    "AdjointMatching": "carry no gradient",
    "DiffusionNFT": "predicts no clean state",
    "InversionDPO": "no mixture of data and noise",
    "MixGRPO": "no mixture of data and noise",
    "ReFL": "carry no gradient",
}
"""What methods say that are not defined for sequences, whose states are symbols."""


@dataclass(frozen=True)
class Cell:
    """What became of one method on one family.

    Args:
        ratio_error: largest difference of log-probabilities in sampling and training before the
            first update, per dimension; None for methods without them.
        losses: of the two updates.
        untouched: adapters that no gradient reached.
        reloaded: largest difference between our predictions and those of the plain pipeline with
            the saved weights, in units of what training changed.
        seconds: all that took.
    """

    ratio_error: float | None
    losses: tuple[float, float]
    untouched: tuple[str, ...]
    reloaded: float
    seconds: float

    @property
    def faults(self) -> list[str]:
        """What does not hold, in words."""
        checks = {
            f"ratio - 1 is {self.ratio_error}": (self.ratio_error or 0.0) <= RATIO_TOLERANCE,
            f"losses are {self.losses}": bool(torch.tensor(self.losses).isfinite().all()),
            f"no gradient reaches {len(self.untouched)} adapters, {self.untouched[:2]}": (
                not self.untouched
            ),
            f"the plain pipeline is {self.reloaded} away": self.reloaded < 1e-2,
        }
        return [fault for fault, holds in checks.items() if not holds]


class Row(Protocol):
    """One family of the table."""

    @property
    def name(self) -> str:
        """Of the column."""

    @property
    def prompts(self) -> Sequence[str]:
        """Two."""

    @property
    def adaptation(self) -> LoRA:
        """Of a few of the network's layers."""

    def model(self, folder: Path) -> Any:
        """A chain that is the same every time, in a folder of the test."""

    def reward(self, samples: Samples, prompts: Sequence[str]) -> Tensor:
        """Differentiable."""

    def prediction(self, model: Any) -> Tensor:
        """The network's output at some state."""

    def reloaded(self, model: Any, folder: Path) -> Any:
        """The plain pipeline with what was saved in folder / "saved", as a user loads it."""


@dataclass(frozen=True)
class Media:
    """A family of pipelines that make images, sounds or videos."""

    family: Family

    @property
    def name(self) -> str:
        return self.family.name

    @property
    def prompts(self) -> Sequence[str]:
        return self.family.prompts

    @property
    def adaptation(self) -> LoRA:
        return LoRA(2, targets=self.family.targets)

    def model(self, folder: Path) -> Any:
        pipe, sampler = self.family.build(folder), self.family.samplers[0]
        return self.family.model(pipe, sampler=sampler, eta=0.7, num_steps=5)

    def reward(self, samples: Samples, prompts: Sequence[str]) -> Tensor:
        """How loud or bright samples are."""
        return tensor(samples).float().square().flatten(1).mean(1)

    @torch.no_grad()
    def prediction(self, model: Any) -> Tensor:
        condition = model.encode(["a red cat"] if model.negative_prompt else [""])
        noise = torch.randn(1, *model.event, generator=torch.Generator().manual_seed(0))
        predicted: Tensor = model.predict(noise, torch.tensor([0.5]), condition)
        return predicted

    def reloaded(self, model: Any, folder: Path) -> Any:
        plain = self.family.build(folder)
        if model.adapter_by_pipeline:
            plain.load_lora_weights(folder / "saved")
        else:
            name = model.network_name
            adapted = PeftModel.from_pretrained(plain.components[name], folder / "saved")
            setattr(plain, name, adapted.base_model.model)
        return self.family.model(plain)


ROWS: list[Row] = [*map(Media, FAMILIES), *SEQUENCES]


def cell(method: type[Algorithm], row: Row, folder: Path) -> Cell:
    """Train two updates, save, and load what was saved into the plain pipeline.

    Raises:
        TypeError, TrainingError: if the library refuses, with its reason.
    """
    start = time.monotonic()
    model = row.model(folder)
    before = row.prediction(model)
    policy = row.adaptation.attach(model, 4)
    touched: set[str] = set()
    metrics = list(_updates(method(), policy, row, touched))
    ours = row.prediction(model)
    policy.save(folder / "saved")
    theirs = row.prediction(row.reloaded(model, folder))
    return Cell(
        metrics[0].get("ratio_error"),
        (metrics[0]["loss"], metrics[1]["loss"]),
        tuple(sorted(set(policy.parameters()) - touched)),
        float((ours - theirs).abs().max() / (ours - before).abs().max()),
        time.monotonic() - start,
    )


def _updates(
    method: Algorithm, policy: Policy, row: Row, touched: set[str]
) -> Iterator[dict[str, float]]:
    """Train, and note which parameters a gradient reaches; the metrics of the last inner steps."""
    optimizer = torch.optim.Adam(policy.parameters().values(), lr=1e-3)
    for update in (1, 2):
        experience = method.collect(
            policy, row.reward, Batch(row.prompts, 2, seed=0, update=update)
        )
        for inner_step in range(method.inner_steps):
            optimizer.zero_grad()
            losses = method.losses(policy, experience, inner_step)
            while True:
                try:
                    next(losses).backward()
                except StopIteration as end:
                    metrics = end.value
                    break
            named = policy.parameters().items()
            touched |= {name for name, p in named if p.grad is not None and bool(p.grad.any())}
            optimizer.step()
        yield metrics


def main(file: Path) -> None:
    """Write the table."""
    columns, head = methods(), [row.name for row in ROWS]
    lines = [
        "# Every method on every family",
        "",
        "Two updates of a tiny pipeline of the real diffusers classes, random weights: it runs, "
        "sampling and training see the same probabilities before the first update, the loss is "
        "finite, a gradient reaches every adapter, and the plain diffusers pipeline with the saved "
        "LoRA gives what ours gives. Written by `make matrix`; numbers are seconds of the cell. "
        "No: the method needs states that are numbers, and says so.",
        "",
        f"| | {' | '.join(head)} |",
        f"|---|{'---|' * len(head)}",
    ]
    wrong = []
    for method in tqdm(columns):
        cells = []
        for row in ROWS:
            if row in SEQUENCES and method.__name__ in REFUSALS:
                cells.append("no")
                continue
            with TemporaryDirectory() as folder:
                found = cell(method, row, Path(folder))
            cells.append("**wrong**" if found.faults else f"{found.seconds:.1f}")
            wrong += [f"{method.__name__} on {row.name}: {fault}" for fault in found.faults]
        lines.append(f"| {method.__name__} | {' | '.join(cells)} |")
    file.write_text("\n".join(lines) + "\n")
    print("\n".join([*lines, *wrong]))
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
