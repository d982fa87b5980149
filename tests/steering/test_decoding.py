"""Clean predictions become media by the pipeline's own last lines, and nothing else happens."""

import copy
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, DiffusionPipeline
from steering.drop_in_cases import build, energy, looking, steered
from torch import Generator, Tensor
from zoo.check import entries

from diffreward.samples import Audio, Images, Samples, Videos
from diffreward.steering import FKSteering, Guidance, steer
from diffreward.steering.drop_in.arguments import expand
from diffreward.steering.drop_in.decoding import Decoder
from diffreward.steering.drop_in.denoiser import Watched, networks, replaced
from diffreward.steering.drop_in.session import State
from diffreward.steering.methods import ONCE

ENTRIES = {entry.name: entry for entry in entries()}
KINDS = {
    "StableDiffusionXLPipeline": Images,
    "StableDiffusion3Pipeline": Images,
    "FluxPipeline": Images,
    "FluxInpaintPipeline": Images,
    "SanaPipeline": Images,
    "PixArtAlphaPipeline": Images,
    "IFPipeline": Images,
    "DDPMPipeline": Images,
    "HiDreamImagePipeline-lcm": Images,
    "WanPipeline": Videos,
    "LTXPipeline": Videos,
    "LTX2Pipeline": Videos,
    "CogVideoXPipeline-DPM": Videos,
    "StableAudioPipeline": Audio,
    "LongCatAudioDiTPipeline": Audio,
}
"""Pipelines whose last step arrives at the clean prediction itself, and what they make."""


@cache
def pipeline(name: str) -> DiffusionPipeline:
    with TemporaryDirectory() as folder:
        return build(ENTRIES[name], Path(folder))


def column(samples: Samples) -> Tensor:
    return next(iter(samples._columns().values())).float()


def last_states(name: str) -> tuple[tuple[Tensor, ...], Samples]:
    """The last clean predictions of two particles, and the finished ones."""
    seen: list[State] = []

    def value(state: State, prompts: Sequence[str]) -> Tensor:
        seen.append(state)
        return torch.zeros(len(prompts))

    pipe = steer(pipeline(name), energy, looking(2), value=value)
    steered(pipe, ENTRIES[name].call)
    return seen[-1].clean, pipe.last.particles


def decoder(name: str, **changed: Any) -> Decoder:
    """Of a call with two particles, which has been made once."""
    pipe = pipeline(name)
    call = expand(pipe, (), ENTRIES[name].call, 2)
    watched = {key: Watched(m, 2, 64, lambda: None) for key, m in networks(pipe).items()}
    inner = copy.copy(pipe)
    for key, network in watched.items():
        vars(inner)[key] = replaced(vars(pipe)[key], network)
    torch.manual_seed(0)
    inner(**call.keywords)
    return Decoder(pipe, call.with_keywords(**changed), watched)


@pytest.mark.parametrize("name", KINDS)
def test_the_last_clean_prediction_is_what_the_pipeline_makes_of_it(name: str) -> None:
    """Judged on its way in the last state, and again when finished."""
    seen: list[Samples] = []

    def reward(samples: Samples, prompts: Sequence[str]) -> Tensor:
        seen.append(samples)
        return energy(samples, prompts)

    steered(steer(pipeline(name), reward, looking(2)), ENTRIES[name].call)
    before, finished = seen[-2:]
    assert type(before) is type(finished) is KINDS[name]
    assert (column(before) - column(finished)).abs().max() <= 1e-5
    assert (column(finished)[0] - column(finished)[1]).abs().max() > 1e-3


def test_each_row_is_decoded_by_itself() -> None:
    for name in ("FluxPipeline", "WanPipeline", "AudioLDM2Pipeline"):
        states, _ = last_states(name)
        decode = decoder(name)
        with torch.no_grad():
            both = decode(states, torch.arange(2))
            for i in range(2):
                alone = decode([x[i : i + 1] for x in states], torch.tensor([i]))
                torch.testing.assert_close(column(alone), column(both)[i : i + 1])


@pytest.mark.parametrize(
    "name",
    [
        "StableDiffusionPipeline",
        "StableDiffusionXLPipeline",
        "FluxPipeline",
        "StableDiffusion3Pipeline",
        "AudioLDM2Pipeline",
    ],
)
def test_gradients_reach_the_clean_states_through_the_pipelines_last_lines(name: str) -> None:
    states, _ = last_states(name)
    decode = decoder(name)
    leaf = states[0].clone().requires_grad_()
    with torch.enable_grad():
        rewards = energy(decode([leaf, *states[1:]], torch.arange(2)), ["", ""])
    (slope,) = torch.autograd.grad(rewards[0], leaf)
    assert slope.isfinite().all() and slope[0].abs().max() > 0
    assert not slope[1].any()
    # Along the gradient, the reward grows as it says.
    step = 1e-3 * slope / slope.norm()
    with torch.no_grad():
        ends = [energy(decode([leaf + s * step], torch.arange(2)), ["", ""])[0] for s in (1, -1)]
    torch.testing.assert_close((ends[0] - ends[1]) / 2e-3, slope.norm(), rtol=0.05, atol=1e-5)


@pytest.mark.parametrize("name", ["StableDiffusionPipeline", "CogVideoXPipeline-DPM"])
def test_decoding_leaves_all_random_numbers_alone(name: str) -> None:
    states, _ = last_states(name)
    pipe, mine = pipeline(name), Generator().manual_seed(4)
    decode = decoder(name, generator=mine)
    before = torch.get_rng_state(), mine.get_state(), repr(vars(pipe.scheduler))
    with torch.no_grad():
        decode(states, torch.arange(2))
    after = torch.get_rng_state(), mine.get_state(), repr(vars(pipe.scheduler))
    assert torch.equal(before[0], after[0]) and torch.equal(before[1], after[1])
    assert before[2] == after[2]


def test_a_preview_vae_decodes_on_the_way_and_the_pipelines_own_at_the_end() -> None:
    name, seen = "StableDiffusionXLPipeline", []

    class Halved(AutoencoderKL):
        def decode(self, *args: Any, **kwargs: Any) -> Any:
            (pixels,) = super().decode(*args, **{**kwargs, "return_dict": False})
            return (0.5 * pixels,)

    def reward(samples: Samples, prompts: Sequence[str]) -> Tensor:
        seen.append(samples)
        return energy(samples, prompts)

    vae = pipeline(name).vae
    tiny = Halved.from_config(vae.config).eval()
    tiny.load_state_dict(vae.state_dict())
    steered(steer(pipeline(name), reward, looking(2), preview_vae=tiny), ENTRIES[name].call)
    before, finished = seen[-2:]
    inside = (column(finished) > 0) & (column(finished) < 1)
    assert inside.float().mean() > 0.9
    expected = 0.5 + (column(finished) - 0.5) / 2
    torch.testing.assert_close(column(before)[inside], expected[inside])
    assert pipeline(name).vae is vae


def test_shrunk_previews_are_smaller_pictures_of_the_same() -> None:
    name = "StableDiffusionXLPipeline"
    sizes: list[tuple[int, ...]] = []

    def reward(samples: Samples, prompts: Sequence[str]) -> Tensor:
        sizes.append(tuple(column(samples).shape[-2:]))
        return energy(samples, prompts)

    pipe = steer(pipeline(name), reward, FKSteering(2, interval=ONCE), preview_shrink=2)
    steered(pipe, ENTRIES[name].call)
    (height, width), (whole_height, whole_width) = sizes
    assert (2 * height, 2 * width) == (whole_height, whole_width)


def test_states_that_are_no_pictures_are_not_shrunk() -> None:
    for name in ("FluxPipeline", "IFPipeline"):
        with pytest.raises(ValueError, match=r"got preview_shrink 2 .* pipeline with a vae"):
            steered(steer(pipeline(name), energy, looking(2), preview_shrink=2), ENTRIES[name].call)


def test_a_network_of_unknown_name_is_not_run_in_secret() -> None:
    call = expand(pipeline("DDPMPipeline"), (), {"num_inference_steps": 2}, 2)
    with pytest.raises(ValueError, match="pass decoder="):
        Decoder(pipeline("DDPMPipeline"), call, {})([torch.zeros(1, 3, 8, 8)], torch.tensor([0]))


def test_a_decoder_of_the_user_replaces_the_pipelines_last_lines() -> None:
    name, shapes = "StableDiffusion3Pipeline", []

    def decode(states: Tensor) -> Samples:
        shapes.append(tuple(states.shape))
        return Images(states[:, :3].sigmoid())

    pipe = steer(pipeline(name), energy, looking(2), decoder=decode, rows=1)
    output = steered(pipe, {**ENTRIES[name].call, "output_type": "latent"})
    assert set(shapes) == {(1, *output.images.shape[1:])}
    assert torch.equal(pipe.last.particles.pixels, output.images[:, :3].sigmoid())


def test_guidance_moves_particles_up_the_gradient_of_the_decoded_prediction() -> None:
    """By far more than the plain particles differ, and down if the reward's sign is turned."""
    name = "StableDiffusion3Pipeline"
    means = []
    for scale in (-2000.0, 0.0, 2000.0):
        pipe = steer(pipeline(name), energy, Guidance(scale, particles=2))
        steered(pipe, ENTRIES[name].call)
        means.append(pipe.last.rewards.mean().item())
    assert means[0] < means[1] < means[2]
