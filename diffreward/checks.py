"""What can be known to be wrong before the weights change."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

RATIO_TOLERANCE = 1e-3
"""In nats per dimension: far above rounding, far below what a wrong log-probability gives."""


class TrainingError(RuntimeError):
    """The first update showed that training cannot work; the message says why and what to do."""


def check_scores(scores: Tensor) -> None:
    """Is there anything to learn from the first scores, (B,)?

    Raises:
        TrainingError: if none is finite, or all are equal.
    """
    scored = scores[scores.isfinite()]
    if not len(scored):
        raise TrainingError(
            f"the reward gave no finite score to any of {len(scores)} samples; try it on samples "
            "of the model with diffreward.conformance.check_reward"
        )
    if len(scored) > 1 and bool((scored == scored[0]).all()):
        raise TrainingError(
            f"the reward gave all {len(scored)} samples the same score, {float(scored[0]):.6g}; a "
            "constant reward teaches nothing"
        )


def check_first_step(metrics: Mapping[str, float]) -> None:
    """Before the weights first change: equal probabilities in sampling and training, a gradient.

    Raises:
        TrainingError: if one of the two is missing.
    """
    if metrics.get("ratio_error", 0.0) > RATIO_TOLERANCE:
        raise TrainingError(
            f"before the first update the log-probabilities in training differ from those in "
            f"sampling by {metrics['ratio_error']:.2e} per dimension, expected 0: the network "
            "gives other outputs for the same inputs (dropout, precision, other rows?)"
        )
    if metrics["grad_norm"] == 0:
        raise TrainingError(
            "the gradient of the first update is zero: all samples of each prompt have equal "
            "scores, or the loss does not reach the trained weights"
        )
