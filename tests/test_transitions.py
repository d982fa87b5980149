"""The laws against torch.distributions, and the laws of their draws."""

import math

import pytest
import torch
import torch.distributions as td

from diffreward.random import randn, stream
from diffreward.transitions import Categorical, Dirac, Gaussian, Transition, concatenate


def normal(shape: tuple[int, ...], *keys: int) -> torch.Tensor:
    return randn(shape, stream(0, *keys))


def gaussian(*keys: int) -> Gaussian:
    return Gaussian(normal((5, 3, 4), *keys, 0), normal((5,), *keys, 1).exp())


def categorical(*keys: int) -> Categorical:
    return Categorical(2 * normal((5, 3, 4), *keys))


def reference(law: Transition) -> td.Distribution:
    if isinstance(law, Gaussian):
        scale = law.std.reshape(5, 1, 1).expand_as(law.mean)
        return td.Independent(td.Normal(law.mean, scale), 2)
    assert isinstance(law, Categorical)
    return td.Independent(td.Categorical(logits=law.logits), 1)


@pytest.mark.parametrize("make", [gaussian, categorical])
def test_log_prob_and_kl_agree_with_torch(make) -> None:
    p, q = make(1), make(2)
    x = p.sample(stream(3))
    torch.testing.assert_close(q.log_prob(x), reference(q).log_prob(x))
    torch.testing.assert_close(p.kl(q), td.kl_divergence(reference(p), reference(q)))
    torch.testing.assert_close(p.kl(p), torch.zeros(5), rtol=0, atol=1e-5)


@pytest.mark.parametrize("make", [gaussian, categorical, lambda i: Dirac(normal((5, 2), i))])
def test_indexing_repeats_and_reorders_chains(make) -> None:
    law, rows = make(1), torch.tensor([3, 3, 0])
    drawn = law[rows]
    for name, value in vars(law).items():
        if torch.is_tensor(value):
            assert torch.equal(vars(drawn)[name], value[rows])


def test_gaussian_draws_have_their_mean_and_std() -> None:
    n = 40_000
    law = Gaussian(torch.full((n, 2), 3.0), torch.full((n,), 0.5))
    x = law.sample(stream(0)).double()
    assert abs(x.mean() - 3) < 4 * 0.5 / math.sqrt(2 * n)
    assert abs(x.var() - 0.25) < 4 * 0.25 * math.sqrt(2 / (2 * n))


def test_categorical_draws_follow_the_logits_down_to_rare_tokens() -> None:
    n = 200_000
    p = torch.tensor([0.6, 0.3, 0.0999, 0.0001, 0.0], dtype=torch.float64)
    x = Categorical(p.log().expand(n, 1, 5)).sample(stream(0))
    counts = x.flatten().bincount(minlength=5)
    assert counts[4] == 0
    error = (n * p * (1 - p)).sqrt()
    assert ((counts - n * p).abs() <= 4 * error).all()


def test_gumbel_noise_reaches_beyond_what_float32_can() -> None:
    # Float32 uniforms end at 1 - 2^-24: no noise above -log(-log(1 - 2^-24)) = 16.6 exists, and
    # below 2^-24 they have no neighbours. In float64 the smallest step is 2^-53.
    noise = Categorical(torch.zeros(2000, 10, 100))._gumbel(stream(0))
    assert noise.dtype == torch.float64 and noise.isfinite().all()
    # The mean of a Gumbel number is Euler's constant, its variance pi^2 / 6.
    assert abs(noise.mean() - 0.577216) < 4 * math.pi / math.sqrt(6 * noise.numel())
    assert len(noise.unique()) > 0.999999 * noise.numel()  # float32 has 2^24 values only


def test_sampling_needs_no_gradient_and_rsample_has_one() -> None:
    mean, std = normal((4, 2)).requires_grad_(), torch.ones(4, requires_grad=True)
    law = Gaussian(mean, std)
    assert not law.sample(stream(0)).requires_grad
    x = law.rsample(stream(0))
    torch.testing.assert_close(x, law.sample(stream(0)))
    x.sum().backward()
    torch.testing.assert_close(mean.grad, torch.ones(4, 2))
    torch.testing.assert_close(std.grad, (x - mean).sum(1).detach())  # the noise


def test_relaxed_draws_are_one_hot_in_value_and_soft_in_gradient() -> None:
    logits = normal((6, 3, 4)).double().requires_grad_()
    law, direction = Categorical(logits, temperature=0.7), normal((6, 3, 4), 9).double()
    x = law.rsample(stream(0))
    assert torch.equal(x.argmax(-1), law.sample(stream(0)))
    torch.testing.assert_close(x.sum(-1), torch.ones(6, 3).double())
    assert ((x - x.round()).abs() < 1e-12).all()
    (hard,) = torch.autograd.grad((x * direction).sum(), logits)
    soft = ((logits + law._gumbel(stream(0))) / 0.7).softmax(-1)
    (expected,) = torch.autograd.grad((soft * direction).sum(), logits)
    torch.testing.assert_close(hard, expected)


def test_impossible_tokens_leave_kl_and_its_gradient_finite() -> None:
    logits = torch.tensor([[[0.0, -math.inf, 1.0]]], requires_grad=True)
    other = Categorical(torch.tensor([[[0.5, 0.3, 0.0]]]))
    kl = Categorical(logits).kl(other)
    p = torch.tensor([1.0, math.e]) / (1 + math.e)
    q = torch.tensor([0.5, 0.0]) - torch.tensor([0.5, 0.3, 0.0]).logsumexp(0)
    torch.testing.assert_close(kl[0], (p * (p.log() - q)).sum())
    kl.sum().backward()
    assert logits.grad.isfinite().all()
    assert other.kl(Categorical(logits)).item() == math.inf


def test_a_deterministic_step_has_no_density() -> None:
    law = Dirac(normal((3, 2)))
    assert torch.equal(law.sample(), law.x) and torch.equal(law.rsample(), law.x)
    with pytest.raises(TypeError, match="no density"):
        law.log_prob(law.x)
    with pytest.raises(TypeError, match="no density"):
        law.kl(law)


def test_laws_of_different_kinds_have_no_kl() -> None:
    for p, q in ((gaussian(), categorical()), (categorical(), gaussian())):
        with pytest.raises(TypeError, match="not defined"):
            p.kl(q)
        with pytest.raises(TypeError, match="not defined"):
            p.kl(Dirac(normal((5, 3, 4))))


@pytest.mark.parametrize("std", [0.0, -1.0, math.nan])
def test_a_gaussian_without_width_is_refused(std: float) -> None:
    with pytest.raises(ValueError, match="std > 0"):
        Gaussian(torch.zeros(2, 3), torch.tensor([1.0, std]))
    with pytest.raises(ValueError, match="one value per chain"):
        Gaussian(torch.zeros(2, 3), torch.ones(2, 1))


@pytest.mark.parametrize("make", [gaussian, categorical, lambda i: Dirac(normal((5, 2), i))])
def test_concatenated_parts_are_the_whole(make) -> None:
    law = make(1)
    whole = concatenate([law[torch.arange(2)], law[torch.arange(2, 5)]])
    assert type(whole) is type(law)
    tensors = {name: value for name, value in vars(law).items() if torch.is_tensor(value)}
    assert all(torch.equal(vars(whole)[name], value) for name, value in tensors.items())


def test_parts_of_several_kinds_and_no_parts_are_refused() -> None:
    with pytest.raises(TypeError, match="Categorical"):
        concatenate([gaussian(), categorical()])
    with pytest.raises(ValueError, match="zero"):
        concatenate([])
