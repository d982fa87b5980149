"""Every particle is a row of its own: prompts, embeddings, masks, pictures, noises, generators."""

import pytest
import torch
from diffusers import (
    DDIMPipeline,
    DiffusionPipeline,
    DiTPipeline,
    LTXPipeline,
    StableDiffusion3Pipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionPipeline,
    StableVideoDiffusionPipeline,
    WanImageToVideoPipeline,
)
from PIL import Image
from torch import Generator, Tensor

from diffreward.steering.drop_in.arguments import expand


def blank(kind: type[DiffusionPipeline]) -> DiffusionPipeline:
    """Without components: only the signature of its call is read."""
    return kind.__new__(kind)


SD, SD3, LTX = map(blank, (StableDiffusionPipeline, StableDiffusion3Pipeline, LTXPipeline))


def rows(count: int, *event: int) -> Tensor:
    """Row i is full of the number i."""
    return torch.arange(float(count)).reshape(-1, *[1] * len(event)).expand(-1, *event)


def numbers(generator: Generator) -> list[float]:
    return torch.rand(3, generator=generator).tolist()


def test_a_prompt_becomes_a_row_per_particle() -> None:
    call = expand(SD, ("a cat",), {"num_inference_steps": 7, "negative_prompt": "a dog"}, 3)
    assert call.keywords["prompt"] == ["a cat"] * 3
    assert call.keywords["negative_prompt"] == ["a dog"] * 3
    assert call.keywords["num_inference_steps"] == 7
    assert (call.prompts, call.particles) == (("a cat",), 3)


def test_one_particle_of_one_prompt_is_the_plain_call() -> None:
    given = {"prompt": "a cat", "latents": torch.randn(1, 4, 8, 8), "guidance_scale": 2.0}
    assert expand(SD, (), given, 1).keywords == {**given, "num_images_per_prompt": 1}


def test_rows_of_one_prompt_are_neighbours() -> None:
    call = expand(SD, (["cat", "dog"],), {"negative_prompt": ["x", "y"]}, 2)
    assert call.keywords["prompt"] == ["cat", "cat", "dog", "dog"]
    assert call.keywords["negative_prompt"] == ["x", "x", "y", "y"]
    assert call.prompts == ("cat", "dog")


def test_each_image_of_a_prompt_is_a_system_of_its_own() -> None:
    call = expand(SD, (["cat", "dog"],), {"num_images_per_prompt": 3}, 2)
    assert call.keywords["prompt"] == ["cat"] * 6 + ["dog"] * 6
    assert call.keywords["num_images_per_prompt"] == 1
    assert call.prompts == ("cat",) * 3 + ("dog",) * 3
    assert len(call.seeds) == len(set(call.seeds)) == 6


def test_one_negative_prompt_serves_all_prompts() -> None:
    call = expand(SD, (["cat", "dog"],), {"negative_prompt": "bad"}, 2)
    assert call.keywords["negative_prompt"] == ["bad"] * 4


def test_embeddings_masks_and_pooled_embeddings_go_together() -> None:
    expected = [0.0] * 3 + [1.0] * 3
    given = {"prompt_embeds": rows(2, 5, 4), "negative_prompt_embeds": rows(2, 5, 4)}
    pooled = {"pooled_prompt_embeds": rows(2, 4), "negative_pooled_prompt_embeds": rows(2, 4)}
    masks = {"prompt_attention_mask": rows(2, 5), "negative_prompt_attention_mask": rows(2, 5)}
    for pipe, more in ((SD3, pooled), (LTX, masks)):
        call = expand(pipe, (), {**given, **more}, 3)
        assert call.prompts == ("", "")
        for name in (*given, *more):
            assert call.keywords[name].flatten(1)[:, 0].tolist() == expected


def test_class_labels_are_prompts_for_the_reward() -> None:
    pipe = blank(DiTPipeline)
    for labels in ([7, 3], torch.tensor([7, 3])):
        call = expand(pipe, (), {"class_labels": labels}, 2)
        assert torch.as_tensor(call.keywords["class_labels"]).tolist() == [7, 7, 3, 3]
        assert call.prompts == ("7", "3")
    assert expand(pipe, (5,), {}, 2).keywords["class_labels"] == [5, 5]


def test_a_pipeline_without_prompts_counts_by_its_batch_size() -> None:
    call = expand(blank(DDIMPipeline), (), {"batch_size": 2}, 3)
    assert call.keywords["batch_size"] == 6
    assert call.prompts == ("", "")
    assert expand(blank(DDIMPipeline), (), {}, 3).keywords["batch_size"] == 3


def test_pictures_go_with_their_prompts() -> None:
    black, white = (Image.new("RGB", (8, 8), colour) for colour in ("black", "white"))
    pipe = blank(StableDiffusionImg2ImgPipeline)
    call = expand(pipe, (["cat", "dog"],), {"image": [black, white]}, 2)
    assert [picture is white for picture in call.keywords["image"]] == [False, False, True, True]
    call = expand(pipe, (["cat", "dog"],), {"image": white}, 2)
    assert [picture is white for picture in call.keywords["image"]] == [True] * 4
    tensor = expand(pipe, (["cat", "dog"],), {"image": rows(2, 3, 8, 8)}, 2).keywords["image"]
    assert tensor[:, 0, 0, 0].tolist() == [0, 0, 1, 1]


def test_pictures_that_become_videos() -> None:
    """Those with prompts take one picture for all rows; without prompts, one per row."""
    white = Image.new("RGB", (8, 8), "white")
    call = expand(blank(StableVideoDiffusionPipeline), (white,), {}, 3)
    assert call.keywords["image"] == [white] * 3 and call.prompts == ("",)
    assert expand(blank(StableVideoDiffusionPipeline), (), {"image": [white] * 2}, 2).prompts == (
        "",
        "",
    )
    call = expand(blank(WanImageToVideoPipeline), (white, "a cat"), {}, 3)
    assert call.keywords["image"] is white and call.keywords["prompt"] == ["a cat"] * 3


@pytest.mark.parametrize("times", [1, 2])
def test_particles_start_at_the_latents_of_their_system_or_at_their_own(times: int) -> None:
    given = rows(2, 4, 8, 8)
    call = expand(SD, (["cat", "dog"],), {"latents": given.repeat_interleave(times, 0)}, 2)
    assert call.keywords["latents"][:, 0, 0, 0].tolist() == [0, 0, 1, 1]


def test_latents_that_were_given_are_not_written_to() -> None:
    given = torch.zeros(2, 4, 8, 8)
    expand(SD, ("cat",), {"latents": given}, 2).keywords["latents"].add_(1)
    assert not given.any()


def test_latents_of_a_wrong_number_are_refused() -> None:
    with pytest.raises(
        ValueError, match=r"got 3 latents for 2 outputs of 2 particles.*give 2 .* 4"
    ):
        expand(SD, (["cat", "dog"],), {"latents": rows(3, 4, 8, 8)}, 2)


def test_one_generator_stays_and_is_not_drawn_from() -> None:
    generator = Generator().manual_seed(3)
    call = expand(SD, (["cat", "dog"],), {"generator": generator}, 2)
    assert call.keywords["generator"] is call.noise is generator
    assert numbers(generator) == numbers(Generator().manual_seed(3))
    again = expand(SD, (["cat", "dog"],), {"generator": Generator().manual_seed(3)}, 2)
    assert again.seeds == call.seeds


def test_the_first_particle_of_a_system_has_the_numbers_of_its_generator() -> None:
    parents = [Generator().manual_seed(seed) for seed in (3, 4)]
    call = expand(SD, (["cat", "dog"],), {"generator": parents}, 3)
    drawn = [numbers(generator) for generator in call.keywords["generator"]]
    assert drawn[::3] == [numbers(Generator().manual_seed(seed)) for seed in (3, 4)]
    assert len({tuple(row) for row in drawn}) == 6


def test_a_system_has_the_same_numbers_in_any_company() -> None:
    together, alone = (
        expand(SD, (["cat"] * len(seeds),), {"generator": parents}, 3)
        for seeds in ((3, 4), (4,))
        for parents in [[Generator().manual_seed(seed) for seed in seeds]]
    )
    assert together.seeds[1:] == alone.seeds
    for one, other in zip(together.noise[3:], alone.noise, strict=True):
        assert numbers(one) == numbers(other)


def test_a_generator_per_particle_is_taken_as_it_is() -> None:
    given = [Generator().manual_seed(seed) for seed in range(4)]
    call = expand(SD, (["cat", "dog"],), {"generator": given}, 2)
    assert all(a is b for a, b in zip(call.noise, given, strict=True))


@pytest.mark.parametrize("count", [0, 1, 3, 5])
def test_generators_of_a_wrong_number_are_refused(count: int) -> None:
    with pytest.raises(ValueError, match=f"got {count} generators for 2 outputs.*give 2 or 4, or"):
        expand(SD, (["cat", "dog"],), {"generator": [Generator() for _ in range(count)]}, 2)


def test_the_global_generator_tells_the_seeds_and_keeps_its_numbers() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        seeds = [expand(SD, ("cat",), {}, 2).seeds for _ in range(2)]
        drawn = torch.rand(3).tolist()
        other = expand(SD, ("cat",), {}, 2).seeds
        torch.manual_seed(0)
        assert seeds[0] == seeds[1] != other
        assert torch.rand(3).tolist() == drawn


def test_some_rows_of_a_call() -> None:
    given = {"prompt_embeds": rows(2, 5, 4), "guidance_scale": 2.0, "height": 6}
    parents = [Generator().manual_seed(seed) for seed in (3, 4)]
    call = expand(SD, (), {**given, "generator": parents}, 3)
    some = call.take(torch.tensor([5, 0]))
    assert some["prompt_embeds"][:, 0, 0].tolist() == [1, 0]
    assert some["generator"] == [call.noise[5], call.noise[0]]
    assert (some["guidance_scale"], some["height"]) == (2.0, 6)


def test_pictures_of_adapters_serve_all_rows() -> None:
    """One per adapter, whose number may equal that of the prompts."""
    white = Image.new("RGB", (8, 8), "white")
    call = expand(SD, ("cat",), {"ip_adapter_image": [white]}, 3)
    assert call.keywords["ip_adapter_image"] == [white]
    embeds = [rows(2, 1, 4)]
    call = expand(SD, ("cat",), {"ip_adapter_image_embeds": embeds}, 3)
    assert call.take(torch.tensor([0]))["ip_adapter_image_embeds"] is embeds


def test_what_counts_or_describes_outputs_is_no_row() -> None:
    """The number of prompts may equal such a number, and names may contain a row's."""
    given = {"output_type": "pt", "num_images_per_prompt": 1, "callback_on_step_end": print}
    call = expand(SD, (["cat", "dog"],), {**given, "timesteps": [3, 2]}, 2)
    assert call.keywords["timesteps"] == [3, 2]
    assert call.keywords["output_type"] == "pt"
    assert call.keywords["callback_on_step_end"] is print


def test_arguments_that_the_pipeline_does_not_take_are_refused() -> None:
    with pytest.raises(TypeError, match="promt"):
        expand(SD3, (), {"promt": "a cat"}, 2)
