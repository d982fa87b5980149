"""The two-pass gradient against autograd, its memory, and the equality of probabilities."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import tiny
import torch
from torch import Tensor

from diffreward.diffusion import Trajectory, rollout
from diffreward.pipelines.stable_diffusion import StableDiffusion
from diffreward.policy import Full, LoRA, Policy
from diffreward.random import stream
from diffreward.replay import log_probs, reference_log_probs, replay

PROMPTS = ["a red cat", "a photo", "a dog"]


def make(folder: Path, num_steps: int = 4, rows: int = 2, full: bool = False) -> Policy:
    model = StableDiffusion(tiny.stable_diffusion(folder), num_steps, guidance_scale=2.0)
    policy = (Full() if full else LoRA(4)).attach(model, rows)
    for i, parameter in enumerate(policy.parameters().values()):
        if not full:
            torch.nn.init.normal_(parameter, std=0.2, generator=stream(i))
    return policy


def draw(policy: Policy) -> Trajectory:
    condition = policy.diffusion.encode(PROMPTS)
    return rollout(policy.diffusion, condition, stream(1), stream(2), policy.rows)


def nonlinear(log_p: Tensor) -> Tensor:
    """Couples all steps and samples, as the regression of PRDP does."""
    total = log_p.sum(1) / 1000
    return (total[0] - total[1] - 1).square() + total.sin().sum() + (log_p / 300).exp().mean()


def gradient(policy: Policy) -> Tensor:
    flat = [p.grad.flatten() for p in policy.parameters().values() if p.grad is not None]
    return torch.cat(flat)


@pytest.mark.parametrize("rows", [1, 2, 3])
def test_the_two_pass_gradient_is_that_of_autograd(tmp_path: Path, rows: int) -> None:
    policy = make(tmp_path, rows=rows)
    policy.diffusion.network.double()
    policy.diffusion.pipe.text_encoder.double()
    path = draw(policy)
    path = Trajectory(path.states.double(), path.steps, path.log_probs, path.condition)
    columns = [
        policy.diffusion.step(path.states[:, k], k, path.condition).transition.log_prob(
            path.states[:, k + 1]
        )
        for k in path.steps
    ]
    nonlinear(torch.stack(columns, 1)).backward()
    expected = gradient(policy)
    policy.diffusion.network.zero_grad()
    for term in replay(policy, path, nonlinear, on_policy=False):
        term.backward()
    error = (gradient(policy) - expected).norm() / expected.norm()
    assert error < 1e-10, f"relative error {error:.1e}"


def stored_activations(policy: Policy) -> int:
    """The most bytes that autograd holds at one time while an objective is backpropagated."""
    held = peak = 0

    class Held:
        def __init__(self, tensor: Tensor) -> None:
            nonlocal held, peak
            self.tensor, self.size = tensor, tensor.numel() * tensor.element_size()
            held += self.size
            peak = max(peak, held)

        def __del__(self) -> None:
            nonlocal held
            held -= self.size

    with torch.autograd.graph.saved_tensors_hooks(Held, lambda saved: saved.tensor):
        for term in replay(policy, draw(policy), nonlinear, on_policy=True):
            term.backward()
            del term
    return peak


def test_stored_activations_do_not_grow_with_the_number_of_steps(tmp_path: Path) -> None:
    few, many = (stored_activations(make(tmp_path, num_steps)) for num_steps in (2, 16))
    assert 0 < many <= few * 1.01


@pytest.mark.parametrize("bfloat16", [False, True], ids=["fp32", "bf16 autocast"])
def test_replayed_probabilities_are_exactly_those_of_sampling(
    tmp_path: Path, bfloat16: bool
) -> None:
    policy = make(tmp_path)
    with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
        path = draw(policy)
        terms: Iterator[Tensor] = replay(policy, path, nonlinear, on_policy=True)
        while True:
            try:
                next(terms)
            except StopIteration as end:
                assert end.value["ratio_error"] == 0
                break


@pytest.mark.parametrize("bfloat16", [False, True], ids=["fp32", "bf16 autocast"])
def test_the_ratio_is_exactly_one_on_the_bundled_pipeline(bfloat16: bool) -> None:
    assets = Path(__file__).parents[1] / "assets" / "digits"
    policy = LoRA(4).attach(StableDiffusion(str(assets), 4, guidance_scale=2.0), rows=4)
    prompts = ["a red seven on a blue background", "a green two on a black background"] * 3
    condition = policy.diffusion.encode(prompts)
    with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
        path = rollout(policy.diffusion, condition, stream(1), stream(2), policy.rows)
        terms = replay(policy, path, nonlinear, on_policy=True)
        while True:
            try:
                next(terms).backward()
            except StopIteration as end:
                assert end.value["ratio_error"] == 0
                break
        assert torch.equal(log_probs(policy, path), path.log_probs)


def test_entries_without_weight_are_not_replayed(tmp_path: Path) -> None:
    policy = make(tmp_path, rows=3)
    path = draw(policy)
    terms = list(replay(policy, path, lambda log_p: log_p[:1, :2].sum(), on_policy=True))
    assert len(terms) == 2


@pytest.mark.parametrize("full", [False, True], ids=["LoRA", "full"])
def test_reference_is_the_model_before_training(tmp_path: Path, full: bool) -> None:
    policy = make(tmp_path, full=full)
    base = StableDiffusion(tiny.stable_diffusion(tmp_path), 4, guidance_scale=2.0)
    with torch.no_grad():
        for parameter in policy.parameters().values():
            parameter.add_(0.05)
    path = draw(policy)
    at_base = torch.stack(
        [
            base.step(path.states[:, k], k, path.condition).transition.log_prob(
                path.states[:, k + 1]
            )
            for k in path.steps
        ],
        1,
    )
    torch.testing.assert_close(reference_log_probs(policy, path), at_base, atol=1e-2, rtol=1e-5)
    assert not torch.allclose(log_probs(policy, path), at_base, atol=1e-2)


def test_an_error_inside_the_reference_leaves_the_policy(tmp_path: Path) -> None:
    policy = make(tmp_path)
    x, condition = torch.randn(3, 4, 8, 8, generator=stream(0)), policy.diffusion.encode(PROMPTS)
    before = policy.diffusion.step(x, 0, condition).clean
    with pytest.raises(KeyError), policy.reference():
        raise KeyError
    assert torch.equal(policy.diffusion.step(x, 0, condition).clean, before)


def test_a_target_that_matches_nothing_is_named_with_what_there_is(tmp_path: Path) -> None:
    model = StableDiffusion(tiny.stable_diffusion(tmp_path), 4)
    with pytest.raises(ValueError, match=r"to_quack.*to_q"):
        LoRA(targets=["to_quack"]).attach(model, 2)
