"""The bound on the log-likelihood that a masked diffusion model is trained on and judged by.

Source: Sahoo et al. (2024), NeurIPS, arXiv:2406.07524, equation 10: the negative ELBO is the mean
over times t ~ U(0, 1) of m'(t) / m(t) times the cross-entropy of the masked symbols. Its weight
grows like 1 / t and its variance without bound; the times here are t = u^2 instead, u ~ U(0, 1),
with the factor dt / du = 2 u, which has the same mean on all of [0, 1] and a bounded variance.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Generator, Tensor, nn

from diffreward.random import rand
from diffreward.sequences.subs import subs_log_probs

if TYPE_CHECKING:
    from diffreward.sequences.scheduler import MaskedDiffusionScheduler


class Corrupted(NamedTuple):
    """Sequences with masks, and what their cross-entropy counts.

    Args:
        noisy: ids, (B, L) int64, V being the mask.
        times: of each row, (B,) float32, in (0, 1].
        weights: of its cross-entropy in the negative ELBO, (B,) float32, > 0.
    """

    noisy: Tensor
    times: Tensor
    weights: Tensor

    def rows(self, rows: slice, device: torch.device) -> Corrupted:
        """Some of them, on a device."""
        return Corrupted(*(tensor[rows].to(device) for tensor in self))


def stratified(n: int, generator: Generator) -> Tensor:
    """One uniform number from each of n equal parts of (0, 1], (n,) float64, in order.

    The low-discrepancy sampler of Kingma et al. (2021), arXiv:2107.00630, appendix I.1, where all
    numbers have the same jitter; here each has its own.
    """
    return (torch.arange(n) + 1 - rand((n,), generator)) / n


def corrupt(
    scheduler: MaskedDiffusionScheduler, clean: Tensor, u: Tensor, generator: Generator
) -> Corrupted:
    """Mask sequences.

    Args:
        scheduler: how many symbols are masked at a time.
        clean: ids, (B, L) int64.
        u: uniform numbers in (0, 1], (B,), the square roots of the times.
        generator: of the masks.
    """
    times = u.square().float()
    weights = (2 * u).float() * scheduler.loss_weight(times)
    return Corrupted(scheduler.add_noise(clean, generator, times), times, weights)


def negative_elbo(denoiser: nn.Module, clean: Tensor, corrupted: Corrupted) -> Tensor:
    """An unbiased estimate of each sequence's negative ELBO from one time, (B,), in nats."""
    logits = denoiser(corrupted.noisy, corrupted.times).logits
    log_p = subs_log_probs(logits.float(), corrupted.noisy)
    return -corrupted.weights * log_p.gather(-1, clean[..., None]).squeeze(-1).sum(1)


@torch.no_grad()
def estimate(
    denoiser: nn.Module,
    scheduler: MaskedDiffusionScheduler,
    clean: Tensor,
    draws: int,
    generator: Generator,
    rows: int = 64,
) -> Tensor:
    """Each sequence's negative ELBO from several times, (N,) on the CPU, in nats.

    The times of a sequence are spread over [0, 1], and those of two sequences independent, so that
    the spread of the numbers is an honest error bar. They do not depend on `rows`.

    Args:
        denoiser: on its device.
        scheduler: of the masks.
        clean: ids, (N, L) int64.
        draws: times per sequence.
        generator: of times and masks.
        rows: most sequences that go through the network at a time.
    """
    device = next(denoiser.parameters()).device
    total = torch.zeros(len(clean), dtype=torch.float64)
    for draw in range(draws):
        u = (draw + 1 - rand((len(clean),), generator)) / draws
        corrupted = corrupt(scheduler, clean, u, generator)
        for start in range(0, len(clean), rows):
            part = slice(start, start + rows)
            noisy = corrupted.rows(part, device)
            total[part] += negative_elbo(denoiser, clean[part].to(device), noisy).double().cpu()
    return total / draws
