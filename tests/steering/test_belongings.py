"""Everything that is a particle's goes with it, and everything that is shared stays."""

import pytest
import torch
from diffusers import DDIMScheduler
from diffusers.guiders import AdaptiveProjectedGuidance
from diffusers.guiders.adaptive_projected_guidance import MomentumBuffer
from torch import Tensor, nn

from diffreward.steering.drop_in.belongings import own_guiders, reindexed, reordered, same_order

TURNED = torch.tensor([2, 1, 0])


def rows(*event: int, blocks: int = 1) -> Tensor:
    """Row i is full of the number i."""
    return torch.arange(3.0 * blocks).reshape(-1, *[1] * len(event)).repeat(1, *event)


def firsts(value: Tensor) -> list[float]:
    return value.flatten(1)[:, 0].tolist()


class Pipe:
    """Has a loop whose variables are looked for."""

    def __init__(self, **components: object) -> None:
        vars(self).update(components)
        self.scheduler = DDIMScheduler()

    def step(self, sample: Tensor, order: Tensor = TURNED, **more: object) -> dict[str, object]:
        return reordered(self, self.scheduler, {"sample": sample, **more}, order)


def test_tensors_with_a_row_per_particle_are_reordered_in_any_nest() -> None:
    nest = [rows(2), {"a": (rows(4), None)}, "word", 3]
    found = reindexed(nest, TURNED)
    assert firsts(found[0]) == firsts(found[1]["a"][0]) == [2, 1, 0]
    assert found[1]["a"][1:] == (None,) and found[2:] == ["word", 3]


def test_tables_and_tensors_of_other_rows_stay() -> None:
    """A scheduler's table of three levels is no row per particle."""
    for value in (torch.arange(3.0), torch.randn(4, 2), torch.randn(6, 2), torch.tensor(1.0)):
        assert reindexed(value, TURNED) is value


def test_the_solver_remembers_what_is_the_particles_own() -> None:
    pipe = Pipe()
    pipe.scheduler.model_outputs, pipe.scheduler.sigmas = [rows(2, 2), None], torch.arange(3.0)
    changed = pipe.step(rows(2, 2), model_output=rows(2, 2), generator=None, eta=0.5)
    assert firsts(changed["sample"]) == firsts(changed["model_output"]) == [2, 1, 0]
    assert changed["eta"] == 0.5 and changed["generator"] is None
    assert firsts(pipe.scheduler.model_outputs[0]) == [2, 1, 0]
    assert pipe.scheduler.sigmas.tolist() == [0, 1, 2]


def test_nothing_is_touched_while_everyone_goes_on_from_itself() -> None:
    pipe, order = Pipe(), torch.arange(3)
    pipe.scheduler.model_outputs = remembered = [rows(2, 2)]
    sample = rows(2, 2)
    assert same_order(order) and not same_order(TURNED)
    assert pipe.step(sample, order)["sample"].data_ptr() == sample.data_ptr()
    assert pipe.scheduler.model_outputs is remembered


def test_reordered_arguments_carry_no_graph() -> None:
    for order in (TURNED, torch.arange(3)):
        sample = (rows(2, 2).requires_grad_() * 2).exp()
        assert not Pipe().step(sample, order)["sample"].requires_grad


class Looping(Pipe):
    def __call__(
        self,
        noise: Tensor | None = None,
        image_latents: Tensor | None = None,
        prompt_embeds: Tensor | None = None,
        negative_embeds: Tensor | None = None,
        levels: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> None:
        self.step(rows(4, 8, 8))


@pytest.mark.parametrize(
    ("name", "value", "found"),
    [
        ("noise", rows(4, 8, 8), [2, 1, 0]),  # on the grid of the state
        ("image_latents", rows(1, 8, 8, blocks=2), [2, 1, 0, 5, 4, 3]),  # stacked by guidance
        ("prompt_embeds", rows(5, 6), [2, 1, 0]),
        ("negative_embeds", rows(5, 6, blocks=2), [2, 1, 0, 5, 4, 3]),
        ("noise", rows(4, 9, 9), [0, 1, 2]),
        ("levels", rows(5), [0, 1, 2]),
        ("mask", rows(4, 8, 8).long(), [0, 1, 2]),
    ],
)
def test_what_a_loop_keeps_per_row_goes_with_the_particle(
    name: str, value: Tensor, found: list[int]
) -> None:
    kept = value.clone()
    Looping()(**{name: kept})
    assert firsts(kept) == found


def test_the_loop_of_another_pipeline_is_left_alone() -> None:
    class Outer(Pipe):
        def __call__(self, inner: Pipe) -> list[float]:
            noise = rows(4, 8, 8)
            inner.step(rows(4, 8, 8))
            return firsts(noise)

    assert Outer()(Pipe()) == [0, 1, 2]


def test_the_part_of_a_state_that_waits_goes_with_the_part_that_is_stepped() -> None:
    """As in pipelines that continue a picture: its frame is not stepped, and sits in one tensor."""
    whole = rows(4, 3, 2, 2).contiguous()
    changed = Pipe().step(whole[:, :, 1:])
    assert firsts(changed["sample"]) == firsts(whole) == [2, 1, 0]


def test_momentum_of_guidance_goes_with_the_particle() -> None:
    guider = AdaptiveProjectedGuidance(adaptive_projected_guidance_momentum=-0.5)
    guider.momentum_buffer = MomentumBuffer(-0.5)
    guider.momentum_buffer.running_average = rows(4, 8, 8)
    pipe = Pipe(guider=guider, unet=nn.Linear(1, 1))
    pipe.step(rows(4, 8, 8))
    assert firsts(guider.momentum_buffer.running_average) == [2, 1, 0]


def test_a_copied_pipeline_has_guiders_of_its_own() -> None:
    guider, network = AdaptiveProjectedGuidance(), nn.Linear(1, 1)
    pipe = Pipe(guider=guider, unet=network)
    own_guiders(pipe)
    assert type(pipe.guider) is AdaptiveProjectedGuidance and pipe.guider is not guider
    assert pipe.unet is network
