"""A steered pipeline is the pipeline: its arguments, its output, its attributes, its mistakes."""

import copy
import dataclasses
import pickle
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline, FirstBlockCacheConfig
from PIL import Image
from steering.drop_in_cases import arrays, build, difference, energy
from steering.test_matrix import fingerprint
from torch import Generator, Tensor
from zoo.check import entries

from diffreward.reward import RewardError
from diffreward.samples import Samples, audio, images
from diffreward.steering import (
    DAS,
    SVDD,
    BeamSearch,
    BestOfN,
    FKSteering,
    Guidance,
    PathSearch,
    steer,
)

ENTRIES = {entry.name: entry for entry in entries()}
SD = "StableDiffusionPipeline"
EVERY = FKSteering(3, 100.0, interval=1, start=0.0, stop=1.0)


@cache
def made(name: str) -> DiffusionPipeline:
    with TemporaryDirectory() as folder:
        return build(ENTRIES[name], Path(folder))


@pytest.fixture
def pipe() -> Iterator[DiffusionPipeline]:
    """Stable Diffusion, which must be left as it was."""
    made(SD)(**seeded())  # sets its schedule
    before = fingerprint(made(SD))
    yield made(SD)
    assert fingerprint(made(SD)) == before


def seeded(seed: int = 0, **more: Any) -> dict[str, Any]:
    return {**ENTRIES[SD].call, "generator": Generator().manual_seed(seed), **more}


@pytest.mark.parametrize("output_type", ["pil", "np", "pt", "latent"])
def test_the_output_has_the_class_and_form_of_the_plain_call(pipe, output_type: str) -> None:
    expected = pipe(**seeded(output_type=output_type))
    found = steer(pipe, energy, EVERY)(**seeded(output_type=output_type))
    assert type(found) is type(expected)
    assert type(found.images) is type(expected.images)
    assert len(found.images) == len(expected.images) == 1
    assert found.images[0].size == expected.images[0].size or not isinstance(
        found.images[0], Image.Image
    )
    as_tuple = steer(pipe, energy, EVERY)(**seeded(output_type=output_type, return_dict=False))
    assert type(as_tuple) is tuple
    assert difference(as_tuple[0], found.images) == 0


def test_the_first_particle_is_the_plain_call(pipe) -> None:
    given = seeded(generator=[Generator().manual_seed(3)])
    expected = pipe(**seeded(generator=[Generator().manual_seed(3)]))
    steered = steer(pipe, energy, BestOfN(3))
    output = steered(**given)
    assert difference(steered.last.outputs.images[:1], expected.images) <= 1e-5
    rewards = energy(steered.last.particles, [""] * 3)
    assert steered.last.chosen.tolist() == [rewards.argmax().item()]
    assert torch.equal(steered.last.samples.pixels, output.images)


def test_prompts_are_steered_apart(pipe) -> None:
    """The reward has another sign for every second prompt, and ancestors are of the own prompt."""

    def reward(samples: Samples, prompts: Sequence[str]) -> Tensor:
        sign = torch.tensor([1.0 if prompt == "up" else -1.0 for prompt in prompts])
        return sign * energy(samples, prompts)

    prompts = ["up", "down", "up", "down"]
    steered = steer(pipe, reward, dataclasses.replace(EVERY, particles=6))
    output = steered(**seeded(prompt=prompts))
    assert steered.last.prompts == tuple(prompts)
    assert steered.last.rewards.shape == steered.last.lineage.shape[1:] == (4, 6)
    assert (steered.last.lineage < 6).all()
    found = energy(steered.last.samples, prompts)
    assert found[::2].min() > found[1::2].max()
    assert torch.equal(output.images, steered.last.samples.pixels)


def test_each_output_of_a_prompt_is_the_best_of_particles_of_its_own(pipe) -> None:
    steered = steer(pipe, energy, BestOfN(2))
    output = steered(**seeded(prompt=["a", "b"], num_images_per_prompt=2))
    assert len(output.images) == 4
    assert steered.last.prompts == ("a", "a", "b", "b")


def test_the_same_seed_gives_the_same(pipe) -> None:
    steered = steer(pipe, energy, EVERY)
    one, two, other = (steered(**seeded(seed)) for seed in (1, 1, 2))
    assert difference(one, two) == 0 < difference(one, other)
    torch.manual_seed(1)
    one = steered(**ENTRIES[SD].call)
    torch.manual_seed(1)
    assert difference(one, steered(**ENTRIES[SD].call)) == 0


def test_a_seed_of_resampling_is_separate_from_the_noise(pipe) -> None:
    """Other ancestors from the same noise."""
    drawing = FKSteering(6, 30.0, resampling="multinomial", ess_threshold=1.0, interval=1, start=0)
    lineages = []
    for seed in (0, 0, 1, 2, 3):
        steered = steer(pipe, energy, drawing, seed=seed)
        steered(**seeded())
        lineages.append(steered.last.lineage)
    assert torch.equal(lineages[0], lineages[1])
    assert any(not torch.equal(lineages[0], other) for other in lineages[2:])


@pytest.mark.parametrize("steered_inside", [False, True])
def test_the_pipeline_may_be_called_inside_the_reward(pipe, steered_inside: bool) -> None:
    inner = steer(pipe, energy, BestOfN(2)) if steered_inside else pipe

    def reward(samples: Samples, prompts: Sequence[str]) -> Tensor:
        inner(**seeded(7))
        return energy(samples, prompts)

    expected = steer(pipe, energy, EVERY)(**seeded())
    assert difference(steer(pipe, reward, EVERY)(**seeded()), expected) == 0


def test_a_failing_reward_leaves_the_pipeline_as_it_was(pipe) -> None:
    failures = iter([False, False, True])

    def reward(samples: Samples, prompts: Sequence[str]) -> Tensor:
        if next(failures, False):
            raise ZeroDivisionError
        return energy(samples, prompts)

    before = pipe(**seeded())
    steered = steer(pipe, reward, EVERY)
    with pytest.raises(ZeroDivisionError):
        steered(**seeded())
    with pytest.raises(ValueError, match="call the pipeline first"):
        _ = steered.last
    assert difference(steered(**seeded()), steer(pipe, energy, EVERY)(**seeded())) == 0
    assert difference(pipe(**seeded()), before) == 0


def test_weights_have_their_gradients_on_again_after_a_failure_under_guidance(pipe) -> None:
    assert all(weight.requires_grad for weight in pipe.unet.parameters())

    def reward(samples: Samples, prompts: Sequence[str]) -> Tensor:
        assert not any(weight.requires_grad for weight in pipe.unet.parameters())
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        steer(pipe, reward, DAS(2))(**seeded())
    assert all(weight.requires_grad for weight in pipe.unet.parameters())


def test_everything_else_is_the_pipelines_own(pipe) -> None:
    steered = steer(pipe, energy, EVERY)
    assert steered.unet is pipe.unet and steered.config is pipe.config
    assert steered.components.keys() == pipe.components.keys()
    with pytest.raises(AttributeError, match="no_such_thing"):
        _ = steered.no_such_thing


def test_nothing_is_there_before_the_first_call(pipe) -> None:
    with pytest.raises(ValueError, match="nothing has been steered so far: call the pipeline"):
        _ = steer(pipe, energy).last


def test_a_copy_steers_as_the_original_does(pipe) -> None:
    original = steer(pipe, energy, EVERY)
    expected = original(**seeded())
    for duplicate in (copy.copy(original), copy.deepcopy(original)):
        assert difference(duplicate(**seeded()), expected) == 0


def test_a_pickled_steered_pipeline_steers_as_the_original_does(pipe) -> None:
    original = steer(pipe, energy, EVERY)
    assert difference(pickle.loads(pickle.dumps(original))(**seeded()), original(**seeded())) == 0


def test_a_callback_is_called_once_per_step_and_sees_all_particles(pipe) -> None:
    called: list[tuple[int, int]] = []

    def callback(pipe: Any, step: int, timestep: Any, kept: dict[str, Tensor]) -> dict[str, Tensor]:
        called.append((step, len(kept["latents"])))
        return kept

    steer(pipe, energy, EVERY)(**seeded(callback_on_step_end=callback))
    assert called == [(step, 3) for step in range(4)]


@pytest.mark.slow
def test_a_compiled_network_is_steered(pipe) -> None:
    expected = steer(pipe, energy, EVERY)(**seeded())
    compiled = copy.copy(pipe)
    vars(compiled)["unet"] = torch.compile(pipe.unet, backend="eager")
    assert difference(steer(compiled, energy, EVERY)(**seeded()), expected) <= 1e-5


@pytest.mark.gpu
def test_models_that_are_moved_aside_come_back(tmp_path: Path) -> None:
    pipe = build(ENTRIES[SD], tmp_path)
    pipe.enable_model_cpu_offload()
    output = steer(pipe, energy, EVERY)(**seeded())
    assert np.isfinite(arrays(output)[0]).all()
    assert pipe.unet.device.type == "cpu"


def test_the_progress_bar_tells_how_it_goes(pipe, capsys: pytest.CaptureFixture[str]) -> None:
    shown = copy.copy(pipe)
    shown.set_progress_bar_config(disable=False)
    steer(shown, energy, EVERY)(**seeded())
    shown_text = capsys.readouterr().err
    assert "best 0." in shown_text and "mean 0." in shown_text and "ess " in shown_text


def test_half_precision_is_judged_and_weighed_in_single(tmp_path: Path) -> None:
    """Of bfloat16, which the CPU computes too."""
    pipe = build(ENTRIES["StableDiffusion3Pipeline"], tmp_path).to(torch.bfloat16)
    states = []

    def value(state: Any, prompts: Sequence[str]) -> Tensor:
        states.append(state)
        return state.clean[0].flatten(1).mean(1)

    call = dict(ENTRIES["StableDiffusion3Pipeline"].call)
    steered = steer(pipe, energy, EVERY, value=value)
    output = steered(**{**call, "output_type": "latent"})
    assert {state.clean[0].dtype for state in states} == {torch.float32}
    assert {state.x.dtype for state in states} == {output.images.dtype} == {torch.bfloat16}
    assert steered.last.rewards.isfinite().all()
    output = steer(pipe, energy, DAS(2))(**call)
    assert output.images.isfinite().all()


def moan(samples: Samples, prompts: Sequence[str]) -> Tensor:
    return audio(samples).waves.mean((1, 2))


def no_gradient(samples: Samples, prompts: Sequence[str]) -> Tensor:
    return images(samples).detach().mean((1, 2, 3))


def scalar(samples: Samples, prompts: Sequence[str]) -> Tensor:
    return energy(samples, prompts).mean()


def unknown(samples: Samples, prompts: Sequence[str]) -> Tensor:
    return torch.full((len(prompts),), torch.nan)


@pytest.mark.parametrize(
    ("reward", "method", "error", "says"),
    [
        (moan, BestOfN(2), TypeError, "(?i)audio.*images"),
        (no_gradient, DAS(2), RewardError, "no gradient.*use a differentiable reward, or a method"),
        (no_gradient, Guidance(), RewardError, "no_gradient carries no gradient"),
        (scalar, BestOfN(2), RewardError, r"shape \(\) for 2 samples; a reward returns one number"),
        (unknown, BestOfN(2), FloatingPointError, "no score .* any particle of prompt 0"),
    ],
)
def test_a_reward_that_does_not_fit_says_so(pipe, reward, method, error, says: str) -> None:
    with pytest.raises(error, match=says):
        steer(pipe, reward, method)(**seeded())


def test_a_pipeline_that_makes_no_media_asks_for_a_decoder() -> None:
    name = "KandinskyV22PriorPipeline"
    with pytest.raises(TypeError, match=r"cannot read images, videos.*; pass decoder="):
        steer(made(name), energy, BestOfN(2))(**ENTRIES[name].call)


def test_a_pipeline_without_a_scheduler_is_refused_at_once(pipe) -> None:
    bare = copy.copy(pipe)
    vars(bare)["scheduler"] = None
    for wrong in (bare, pipe.unet):
        with pytest.raises(TypeError, match=r"no component `scheduler`.*give the part of it that"):
            steer(wrong, energy)


@pytest.mark.parametrize("wrong", [-0.1, 1.5])
def test_noise_out_of_range_is_refused_at_once(pipe, wrong: float) -> None:
    with pytest.raises(ValueError, match=rf"got eta {wrong}"):
        steer(pipe, energy, eta=wrong)


@pytest.mark.parametrize("wrong", [{"rows": 0}, {"preview_shrink": 0}])
def test_sizes_out_of_range_are_refused_at_once(pipe, wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=f"got .*{next(iter(wrong))} 0"):
        steer(pipe, energy, **wrong)


@pytest.mark.parametrize(
    "make",
    [lambda: BeamSearch(4, 3), lambda: SVDD(0).settings(), lambda: PathSearch(5, 2).settings()],
)
def test_particles_that_cannot_be_shared_out_are_refused(make: Callable[[], Any]) -> None:
    with pytest.raises(ValueError, match=r"got (4|5|0) particles"):
        make()


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"latents": torch.zeros(2, 4, 8, 8)}, "got 2 latents for 1 outputs of 3 particles"),
        ({"generator": [Generator()] * 2}, "got 2 generators for 1 outputs of 3 particles"),
    ],
)
def test_arguments_of_a_wrong_number_are_refused(pipe, given: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        steer(pipe, energy, EVERY)(**seeded(**given))


def test_too_little_memory_says_how_to_use_less(pipe) -> None:
    def decode(states: Tensor) -> Samples:
        raise torch.OutOfMemoryError("tried to allocate 2 GiB")

    with pytest.raises(torch.OutOfMemoryError, match=r"2 GiB.*rows=.*preview_vae=") as caught:
        steer(pipe, energy, EVERY, decoder=decode)(**seeded())
    assert isinstance(caught.value.__cause__, torch.OutOfMemoryError)


def test_a_network_with_a_cache_of_earlier_steps_is_refused(tmp_path: Path) -> None:
    """Its rows would stay behind when particles are selected."""
    name = "FluxPipeline"
    pipe = build(ENTRIES[name], tmp_path)
    pipe.transformer.enable_cache(FirstBlockCacheConfig(threshold=0.2))
    with pytest.raises(ValueError, match=r"transformer.*disable_cache\(\)"):
        steer(pipe, energy, EVERY)(**ENTRIES[name].call)
    pipe.transformer.disable_cache()
    assert len(steer(pipe, energy, EVERY)(**ENTRIES[name].call).images) == 1
