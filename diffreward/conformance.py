"""Does a new model or a new reward keep its contract? Run these before anything else.

Each check states one sentence of the contract and measures it; a failure names the sentence.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from diffreward.diffusion import Diffusion
from diffreward.random import stream
from diffreward.reward import RewardFunction, score
from diffreward.samples import Samples
from diffreward.transitions import Dirac


class ContractError(AssertionError):
    """A component breaks its contract; the message says which sentence of it."""


def check_reward(reward: RewardFunction, samples: Samples, prompts: Sequence[str]) -> None:
    """Check a reward on a batch of at least two different samples.

    Raises:
        ContractError: naming the broken sentence.
        RewardError: if it does not return one floating-point number per sample.
    """
    n = len(prompts)
    _require(n >= 2, "a reward is checked on at least two samples")
    grad_mode = torch.is_grad_enabled()
    scores = score(reward, samples, prompts)
    _require(torch.is_grad_enabled() == grad_mode, "a reward leaves torch's grad mode as it is")
    _require(bool(scores.isfinite().all()), "good samples get finite scores")
    again = score(reward, samples, prompts)
    _require(torch.equal(scores, again), "the same samples get the same scores")
    alone = torch.cat([score(reward, samples[i : i + 1], [prompts[i]]) for i in range(n)])
    _require(
        torch.allclose(alone, scores, rtol=1e-3, atol=1e-5),
        "the reward of a sample does not depend on the rest of its batch",
    )
    order = torch.arange(n).flip(0)
    flipped = score(reward, samples[order], [prompts[i] for i in order.tolist()])
    _require(
        torch.allclose(flipped, scores[order.to(scores.device)], rtol=1e-3, atol=1e-5),
        "scores follow their samples when the batch is reordered",
    )


def check_diffusion(diffusion: Diffusion, prompts: Sequence[str]) -> None:
    """Check a model on at least two prompts; evaluates the network a few times per step.

    Raises:
        ContractError: naming the broken sentence.
    """
    n, condition = len(prompts), diffusion.encode(prompts)
    _require(n >= 2, "a model is checked on at least two prompts")
    _require(condition.prompts == tuple(prompts), "a condition keeps its prompts")
    x = diffusion.prior(n, stream(0))
    _require(torch.equal(x, diffusion.prior(n, stream(0))), "the prior draws from its source only")
    rows = diffusion.prior(n, [stream(i) for i in range(n)])
    alone = diffusion.prior(1, [stream(n - 1)])
    _require(torch.equal(rows[-1:], alone), "a chain's start depends on its own generator only")
    stochastic = set(diffusion.stochastic_steps)
    _require(stochastic <= set(range(diffusion.num_steps)), "stochastic steps are steps")
    for k in range(diffusion.num_steps):
        x = _check_step(diffusion, x, k, prompts, k in stochastic)
    _require(len(diffusion.decode(x)) == n, "decode gives one sample per state")


def _check_step(
    diffusion: Diffusion, x: torch.Tensor, k: int, prompts: Sequence[str], stochastic: bool
) -> torch.Tensor:
    step = diffusion.step(x, k, diffusion.encode(prompts))
    _require(step.clean.shape[0] == len(x), "there is one clean prediction per chain")
    x_next = step.transition.sample(stream(k))
    _require(x_next.shape == x.shape, "a transition maps states to states of the same shape")
    _require(not x_next.requires_grad, "sample draws without gradient")
    has_density = not isinstance(step.transition, Dirac)
    _require(has_density == stochastic, "stochastic_steps names the steps that have a density")
    if stochastic:
        log_prob = step.transition.log_prob(x_next)
        _require(log_prob.shape == (len(x),), "a log-probability is one number per chain")
        _require(bool(log_prob.isfinite().all()), "a drawn state has finite log-probability")
        order = torch.arange(len(x), device=x.device).flip(0)
        reordered = step.transition[order].log_prob(x_next[order])
        _require(torch.allclose(reordered, log_prob[order]), "indexing reorders the chains")
    return x_next


def _require(holds: bool, sentence: str) -> None:
    if not holds:
        raise ContractError(sentence)
