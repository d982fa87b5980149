"""Rollouts: paths whose numbers are their own, and whose log-probabilities can be recomputed."""

import pytest
import torch

from diffreward.diffusion import Condition, chunks, decode, rollout
from diffreward.pipelines.gaussian_mixture import GaussianMixture, GaussianMixtureDiffusion
from diffreward.random import stream
from diffreward.samples import Vectors, vectors

LAW = GaussianMixture([0.6, 0.4], [[-1.0, 0.0], [1.0, 0.5]], 0.5)


def world(**settings: float) -> GaussianMixtureDiffusion:
    return GaussianMixtureDiffusion(LAW, 6, **settings)


def per_chain(name: str, n: int) -> list[torch.Generator]:
    return [stream(0, name, i) for i in range(n)]


def test_a_path_has_all_states_and_the_log_probabilities_of_its_steps() -> None:
    diffusion = world()
    condition = diffusion.encode(["a", "b", "c"])
    paths = rollout(diffusion, condition, stream(0), stream(1), rows=2)
    assert len(paths) == 3 and paths.dimensions == 2 and paths.condition is condition
    assert paths.states.shape == (3, 7, 2) and paths.steps == tuple(range(6))
    assert torch.equal(paths.clean, paths.states[:, 6])
    for k in range(6):
        law = diffusion.step(paths.states[:, k], k, condition).transition
        torch.testing.assert_close(law.log_prob(paths.states[:, k + 1]), paths.log_probs[:, k])
    assert not paths.states.requires_grad and not paths.log_probs.requires_grad


def test_a_chain_depends_neither_on_rows_nor_on_its_batch() -> None:
    diffusion = world()
    whole = rollout(
        diffusion, diffusion.encode([""] * 7), per_chain("prior", 7), per_chain("noise", 7)
    )
    for n, rows in ((7, 1), (7, 3), (4, 64)):
        part = rollout(
            diffusion,
            diffusion.encode([""] * n),
            per_chain("prior", n),
            per_chain("noise", n),
            rows,
        )
        torch.testing.assert_close(part.states, whole.states[:n])


def test_equal_generators_share_the_start_and_not_the_path() -> None:
    diffusion = world()
    start = [stream(0, "prompt"), stream(0, "prompt")]
    paths = rollout(diffusion, diffusion.encode(["a", "a"]), start, per_chain("noise", 2))
    assert torch.equal(paths.states[0, 0], paths.states[1, 0])
    assert not torch.equal(paths.states[0, 1], paths.states[1, 1])


def test_deterministic_steps_have_no_log_probabilities() -> None:
    diffusion = world(eta=0.0)
    paths = rollout(diffusion, diffusion.encode(["a", "b"]), stream(0))
    assert paths.steps == () and paths.log_probs.shape == (2, 0)
    again = rollout(diffusion, diffusion.encode(["a", "b"]), stream(0), stream(5))
    assert torch.equal(paths.states, again.states)


def test_a_deterministic_last_step_is_left_out() -> None:
    diffusion = world(variance="posterior")
    paths = rollout(diffusion, diffusion.encode(["a", "b"]), stream(0), stream(1))
    assert paths.steps == (0, 1, 2, 3, 4) and paths.log_probs.shape == (2, 5)


@pytest.mark.parametrize(("n", "size", "lengths"), [(7, 3, [3, 3, 1]), (2, 8, [2]), (0, 4, [])])
def test_chunks_cover_all_rows_in_order(n: int, size: int, lengths: list[int]) -> None:
    blocks = list(chunks(n, size))
    assert [len(block) for block in blocks] == lengths
    assert [i for block in blocks for i in block.tolist()] == list(range(n))


def test_conditions_repeat_and_reorder() -> None:
    condition = Condition(("a", "b"), {"embedding": torch.tensor([[1.0], [2.0]])})
    picked = condition[torch.tensor([1, 1, 0])]
    assert picked.prompts == ("b", "b", "a") and len(picked) == 3
    assert picked.tensors["embedding"].flatten().tolist() == [2.0, 2.0, 1.0]


def test_decoding_in_blocks_keeps_order_and_drops_gradient() -> None:
    x = torch.arange(10.0).reshape(5, 2).requires_grad_()
    samples = decode(world(), x, rows=2)
    assert isinstance(samples, Vectors) and torch.equal(vectors(samples), x)
    assert not vectors(samples).requires_grad
