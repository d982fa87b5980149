"""The differentiable rollout: gradients of a reward through the chain that made the samples.

With its noise drawn beforehand, x_{k+1} is a differentiable function of x_k and the weights, so the
gradient of a differentiable reward goes back through decoder, steps and network; for tokens the
draws are straight-through. The first steps run without a graph, the others may be checkpointed
(Chen et al., 2016, arXiv:1604.06174): then one evaluation of the network is in memory at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Generator, Tensor
from torch.utils.checkpoint import checkpoint

from diffreward.algorithm import Batch, Experience
from diffreward.checks import TrainingError
from diffreward.diffusion import Condition, Diffusion, Step, chunks, draw
from diffreward.penalty import NO_PENALTY, Penalty
from diffreward.policy import Policy
from diffreward.random import Source
from diffreward.replay import Losses
from diffreward.reward import RewardFunction, name_of, score

Outcome = Callable[[Step, Source], Tensor]
"""What of the last step is decoded and scored, (B, *event)."""


@dataclass(frozen=True)
class Underway(Experience):
    """Chains at the step from which on they are differentiated; scored when that is done.

    Args:
        states: x_k, (B, *event).
        steps: those with gradient: k and the following ones. The last one's outcome is scored.
        noise: random numbers for these steps, a generator per chain; read, never advanced.
        condition: of the chains.
        reward: of the outcome, decoded.
    """

    states: Tensor
    steps: range
    noise: Sequence[Generator]
    condition: Condition
    reward: RewardFunction


def underway(policy: Policy, reward: RewardFunction, batch: Batch, steps: range) -> Underway:
    """Run the steps before those with gradient, G chains per prompt.

    Args:
        policy: to sample from.
        reward: of what the chains will end in.
        batch: prompts and random numbers.
        steps: those with gradient.
    """
    diffusion, noise = policy.diffusion, batch.streams("steps")
    condition = diffusion.encode(batch.repeated())
    start = batch.streams("start")
    states = draw(diffusion, condition, start, noise, policy.rows, until=steps.start)
    unknown = torch.full((len(states),), torch.nan, device=states.device)
    groups = batch.groups.to(states.device)
    return Underway(unknown, groups, states, steps, noise, condition, reward)


def drawn(step: Step, source: Source) -> Tensor:
    """The state that the step leads to: x_K after the last one."""
    return step.transition.rsample(source)


def predicted(step: Step, source: Source) -> Tensor:
    """The clean state that the network sees at the start of the step."""
    return step.clean


def ascend(
    policy: Policy,
    chains: Underway,
    loss: Callable[[Tensor], Tensor] = torch.neg,
    outcome: Outcome = drawn,
    checkpointing: bool = True,
    penalty: Penalty = NO_PENALTY,
) -> Losses:
    """Backpropagate the mean of a loss on scores through reward, decoder, chain and network.

    The scores are filled into the chains. A sample without a score adds nothing to the loss.

    Args:
        policy: its network gets the gradient.
        chains: on their way.
        loss: of scores, elementwise; by default the negative score.
        outcome: what is scored.
        checkpointing: keep no activations of the network, evaluate it once more in the backward
            pass instead.
        penalty: distance from the reference at the differentiated steps. It counts also as a
            function of the states, through policy and reference.

    Returns:
        loss: its mean.
        penalty: mean distance from the reference, if there is a penalty.

    Raises:
        TrainingError: if the scores carry no gradient.
    """
    total, apart, samples = 0.0, 0.0, len(chains.states)
    for rows in chunks(samples, policy.rows):
        end, distance = _path(policy, chains, rows, outcome, checkpointing, penalty)
        prompts = chains.condition[rows].prompts
        scores, push = reward_gradient(policy.diffusion, chains.reward, end, prompts, loss)
        chains.scores[rows.to(end.device)] = scores
        total += float(loss(scores[scores.isfinite()]).sum()) / samples
        # Its gradient is that of the loss, and the graphs of reward and decoder are gone already.
        term = (push * end).sum() / samples
        if penalty.weight:
            mean = distance.sum() / samples
            apart += float(mean.detach())
            term = term + penalty.coefficient(policy) * mean
        yield term
    return {"loss": total} | ({"penalty": apart} if penalty.weight else {})


def reward_gradient(
    diffusion: Diffusion,
    reward: RewardFunction,
    clean: Tensor,
    prompts: Sequence[str],
    loss: Callable[[Tensor], Tensor] = torch.clone,
) -> tuple[Tensor, Tensor]:
    """Scores of clean states, and the gradient of each one's loss to its state.

    Args:
        diffusion: decodes.
        reward: differentiable.
        clean: (B, *event).
        prompts: of the samples.
        loss: of scores, elementwise; by default the score itself.

    Returns:
        The scores, (B,), NaN = no score; and the gradients, (B, *event), 0 where there is no score.

    Raises:
        TrainingError: if the scores carry no gradient.
    """
    if not clean.is_floating_point():
        raise TrainingError(
            f"the clean states of {type(diffusion).__name__} are {clean.dtype} here and carry no "
            "gradient; take a method that needs none, such as DDPO or PRDP"
        )
    state = clean.detach().requires_grad_()
    with torch.enable_grad():
        scores = score(reward, diffusion.decode(state), prompts).to(clean.device)
        scored = scores.isfinite()
        total = loss(scores[scored]).sum()
    push = None
    if scores.requires_grad:
        (push,) = torch.autograd.grad(total, state, allow_unused=True)
    if push is None:
        raise TrainingError(
            f"the scores of {name_of(reward)} carry no gradient to the samples, and this method "
            "differentiates the reward; take one that does not, such as DDPO or PRDP"
        )
    mask = scored.reshape(-1, *[1] * (push.ndim - 1))
    return scores.detach(), torch.where(mask, push, 0)


@torch.no_grad()
def ends(policy: Policy, chains: Underway) -> Tensor:
    """The states that the chains end in, (B, *event), without gradient."""
    blocks = chunks(len(chains.states), policy.rows)
    return torch.cat([_path(policy, chains, b, drawn, False, NO_PENALTY)[0] for b in blocks])


def _path(
    policy: Policy,
    chains: Underway,
    rows: Tensor,
    outcome: Outcome,
    checkpointing: bool,
    penalty: Penalty,
) -> tuple[Tensor, Tensor]:
    """The outcome of some chains, and the distance from the reference on the way, (n,)."""
    x, condition = chains.states[rows.to(chains.states.device)], chains.condition[rows]
    noise = [chains.noise[i].clone_state() for i in rows.tolist()]
    penalised = _penalised(policy.diffusion, chains.steps) if penalty.weight else ()
    distance = torch.zeros(len(rows), device=x.device)
    for k in chains.steps:
        step = _evaluate(policy, x, k, condition, checkpointing)
        if k in penalised:
            apart = _apart(policy, penalty, step, x, k, condition)
            distance = distance + apart / (len(penalised) if penalty.reduction == "mean" else 1)
        x = (outcome if k == chains.steps[-1] else drawn)(step, noise)
    return x, distance


def _apart(
    policy: Policy, penalty: Penalty, step: Step, x: Tensor, k: int, condition: Condition
) -> Tensor:
    """The distance of a step from the reference's at the same states, (n,), to differentiate once.

    What reaches the states through the reference is found here and now, so that its evaluation is
    not held, nor repeated, until the backward pass.
    """
    state = x.detach().requires_grad_(x.requires_grad)
    with policy.reference(), torch.set_grad_enabled(x.requires_grad):
        theirs = policy.diffusion.step(state, k, condition)
    apart = penalty.between_steps(step, theirs.detach(), policy.diffusion, k)
    if not x.requires_grad:
        return apart
    through = penalty.between_steps(step.detach(), theirs, policy.diffusion, k)
    (push,) = torch.autograd.grad(through.sum(), state)
    return apart + (push * (x - x.detach())).flatten(1).sum(1)


def _penalised(diffusion: Diffusion, steps: range) -> Sequence[int]:
    """The steps with a density, as on recorded paths; if none has one, all that there are."""
    return [k for k in diffusion.stochastic_steps if k in steps] or steps


def _evaluate(policy: Policy, x: Tensor, k: int, condition: Condition, checkpointing: bool) -> Step:
    evaluate = partial(policy.diffusion.step, k=k, condition=condition)
    step: Step = checkpoint(evaluate, x, use_reentrant=False) if checkpointing else evaluate(x)
    return step
