"""The processes of a run: what each works on, and what they tell each other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

from diffreward.gathering import gathered
from diffreward.settings import Training

Value = TypeVar("Value")


class Processes:
    """One of the processes that train together, or the only one.

    Args:
        training: precision, trackers and the folder that they write to.

    Raises:
        ValueError: if a tracker is missing, or the launch splits the network over processes.
    """

    def __init__(self, training: Training) -> None:
        from accelerate import Accelerator

        trackers = _available(training.trackers)
        self.accelerator = Accelerator(
            mixed_precision=training.mixed_precision,
            log_with=trackers or None,
            project_dir=training.output,
        )
        _refuse_sharding(self.accelerator)

    def require(self, name: str, n: int) -> None:
        """Check that there is something to do for every process.

        Raises:
            ValueError: naming the setting that is too small.
        """
        size = self.accelerator.num_processes
        if n < size:
            raise ValueError(
                f"{name} is {n}, fewer than the {size} processes; each needs one at least"
            )

    def share(self, n: int) -> range:
        """Which of n things this process works on."""
        size, index = self.accelerator.num_processes, self.accelerator.process_index
        return range(n * index // size, n * (index + 1) // size)

    def gathered(self, values: list[Value]) -> list[Value]:
        """The values of all processes, in order."""
        parts, _ = gathered(values)
        return [value for part in parts for value in part]

    def from_main(self, value: Value) -> Value:
        """The main process's value."""
        from accelerate.utils import broadcast_object_list

        values = [value]
        broadcast_object_list(values)
        return values[0]


def _available(trackers: Sequence[str]) -> list[str]:
    """The trackers, if accelerate can log to them all; ValueError otherwise."""
    from accelerate.tracking import get_available_trackers

    available = [str(tracker) for tracker in get_available_trackers()]
    missing = sorted(set(trackers) - set(available))
    if missing:
        raise ValueError(f"trackers {missing} are not installed; installed are {available}")
    return list(trackers)


def _refuse_sharding(accelerator: Any) -> None:
    """ValueError for a launch that splits the network over processes."""
    if accelerator.distributed_type.value in ("FSDP", "DEEPSPEED", "MEGATRON_LM"):
        raise ValueError(
            f"{accelerator.distributed_type.value} shards the network, which this loop does not "
            "support; launch with plain multi-GPU (each process holds the whole network)"
        )
