"""The pipeline of sequences: laws, templates, rows evaluated once, folders, and its arguments."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline
from sequences.exact_world import ExactDenoiser, exact_pipeline, excess
from torch import Generator, Tensor

import diffreward
from diffreward.alphabets import PROTEIN
from diffreward.enumeration import sequences
from diffreward.loading import load_pipeline
from diffreward.pipelines.enumerable import random_law
from diffreward.random import stream
from diffreward.sequences.denoisers import ConvDenoiser, TransformerDenoiser
from diffreward.sequences.pipeline import MaskedDiffusionPipeline
from diffreward.sequences.samplers import SAMPLERS
from diffreward.sequences.scheduler import MaskedDiffusionScheduler

V = 3
LETTERS = "ACG"


def small(length: int = 12, **scheduler: object) -> MaskedDiffusionPipeline:
    """A network of random weights that sees all of a sequence."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        denoiser = ConvDenoiser(hidden=8, stacks=1, dilations=(1, 4), kernel=3)
    for weight in denoiser.parameters():
        weight.data *= 3  # of logits that differ
    pipe = MaskedDiffusionPipeline(denoiser, MaskedDiffusionScheduler(**scheduler), length=length)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def sampler(pipe: MaskedDiffusionPipeline, name: str, **settings: object) -> None:
    config = pipe.scheduler.config
    pipe.scheduler = MaskedDiffusionScheduler.from_config(config, sampler=name, **settings)


def test_infilling_follows_the_conditional_law() -> None:
    pipe = exact_pipeline(V, 3, sampler="first_hitting")
    ids = pipe("_G_", 3, 20_000, stream(0, "fill"), output_type="pt").sequences
    law = random_law(V, 3) * (sequences(V, 3)[:, 1] == LETTERS.index("G"))
    assert excess(ids, law / law.sum(), V) < 4


def test_each_template_gets_its_own_sequences_in_order() -> None:
    pipe = exact_pipeline(V, 3)
    found = pipe(["AC_", "", "GGG", "___"], 4, 2, stream(0, "order")).sequences
    assert len(found) == 8 and {len(s) for s in found} == {3} and set("".join(found)) <= {*LETTERS}
    assert all(s.startswith("AC") for s in found[:2]) and found[4:6] == ["GGG", "GGG"]
    assert pipe("ac_", 4, 1, stream(0, "case")).sequences[0].startswith("AC")


@pytest.mark.parametrize("name", sorted(SAMPLERS))
def test_what_a_template_fixes_never_changes(name: str) -> None:
    pipe = exact_pipeline(V, 3, sampler=name, eta=1.0)
    seen: list[Tensor] = []

    def look(pipe, step: int, t: Tensor, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        seen.append(tensors["latents"].clone())
        return tensors

    pipe("_G_", 10, 50, stream(0, "fixed"), callback_on_step_end=look)
    assert len(seen) == 10 and all((ids[:, 1] == 2).all() for ids in seen)
    assert any((ids[:, 0] == V).any() for ids in seen)


@pytest.mark.parametrize("name", sorted(SAMPLERS))
def test_rows_are_evaluated_only_where_they_changed_and_the_samples_are_the_same(name) -> None:
    pipe = small(sampler=name, eta=0.2)
    rows = [0]
    count = pipe.denoiser.register_forward_hook(
        lambda module, inputs, output: rows.append(len(inputs[0]))
    )
    changes = [8]  # all are seen once, with nothing but masks

    def look(pipe, step: int, t: Tensor, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        changes.append(int((tensors["latents"] != look.last).any(1).sum()))
        look.last = tensors["latents"]
        return tensors

    look.last = torch.full((8, 12), 4)
    sources = [stream(0, i) for i in range(8)]
    found = pipe("", 40, 8, sources, output_type="pt", callback_on_step_end=look).sequences
    count.remove()
    assert sum(rows) <= sum(changes) < 8 * 40
    # The plain loop: every row at every step.
    pipe.scheduler.set_timesteps(40)
    x, sources = torch.full((8, 12), 4), [stream(0, i) for i in range(8)]
    with torch.no_grad():
        for t in pipe.scheduler.timesteps:
            x = pipe.scheduler.step(pipe.denoiser(x, t).logits, t, x, sources).prev_sample
    assert torch.equal(found, x)


def test_one_reveal_at_a_time_costs_one_evaluation_each() -> None:
    pipe = exact_pipeline(V, 3, sampler="first_hitting")
    pipe(["___", "A__", "AC_", "ACG"], 100, 1, stream(0, "cost"))
    assert pipe.denoiser.rows == 3 + 2 + 1 and len(pipe.denoiser.times) == 3


def test_a_denoiser_that_sees_the_time_is_asked_at_every_step() -> None:
    pipe = exact_pipeline(V, 3)
    pipe.denoiser = ExactDenoiser(V, 3, time_conditioning=True)
    pipe("", 8, 1, [stream(0, "late")])
    steps = len(pipe.denoiser.times)
    assert steps > 3 and pipe.denoiser.times == [1 - k / 8 for k in range(steps)]
    for name in ("first_hitting", "remdm_loop"):
        sampler(pipe, name)
        with pytest.raises(ValueError, match=f"'{name}' states have no time"):
            pipe("", 8)


def test_conditions_go_to_the_denoiser_with_their_rows() -> None:
    """A bias of its own for each prompt; rows are dropped on the way, and must not be mixed up."""

    class Biased(ExactDenoiser):
        def forward(self, sample, timestep, bias, return_dict=True):
            output = super().forward(sample, timestep)
            output.logits = output.logits + bias[:, None]
            return output

    class Pipeline(MaskedDiffusionPipeline):
        def encode_prompt(self, prompts: Sequence[str]) -> dict[str, Tensor]:
            letters = torch.tensor([LETTERS.index(prompt) for prompt in prompts])
            bias = 1e3 * torch.nn.functional.one_hot(letters, V)
            return super().encode_prompt([""] * len(prompts)) | {"bias": bias}

    pipe = Pipeline(Biased(V, 3), MaskedDiffusionScheduler(vocab_size=V), LETTERS, 3)
    pipe.set_progress_bar_config(disable=True)
    found = pipe(["A", "C", "G", "A"], 20, 1, stream(0, "bias")).sequences
    assert found == ["AAA", "CCC", "GGG", "AAA"]
    assert pipe.denoiser.rows < 4 * 20


def test_what_a_row_becomes_depends_on_its_generator_only() -> None:
    pipe = small()
    whole = pipe("", 20, 4, [stream(0, i) for i in range(4)]).sequences
    assert pipe("", 20, 2, [stream(0, 3), stream(0, 1)]).sequences == [whole[3], whole[1]]
    assert len(set(whole)) == 4
    one = pipe("", 20, 4, Generator().manual_seed(1)).sequences
    assert one == pipe("", 20, 4, Generator().manual_seed(1)).sequences != whole


def test_templates_of_any_length_fit_a_convolutional_network() -> None:
    pipe = small(length=12)
    assert [len(s) for s in pipe("", 4).sequences] == [12]
    (found,) = pipe("ACGT" + 26 * "_", 4).sequences
    assert len(found) == 30 and found.startswith("ACGT")


def test_the_type_of_the_output_is_as_asked() -> None:
    pipe = exact_pipeline(V, 3)

    def call(**how: object) -> object:
        return pipe("", 4, 2, stream(0, "type"), **how)

    strings, ids = call().sequences, call(output_type="pt").sequences
    assert ids.dtype == torch.int64 and ids.shape == (2, 3)
    assert ["".join(LETTERS[i] for i in row) for row in ids.tolist()] == strings
    assert torch.equal(call(output_type="latent").sequences, ids)
    assert call(return_dict=False) == (strings,)
    assert pipe.num_timesteps == 4


def test_latents_are_where_it_starts() -> None:
    pipe = exact_pipeline(V, 3)
    start = torch.tensor([[0, V, V], [1, 1, 1]])
    kept = start.clone()
    found = pipe(["", "__G"], 4, 1, stream(0, "start"), start, output_type="pt").sequences
    assert found[0, 0] == 0 and found[1].tolist() == [1, 1, 2]
    assert torch.equal(start, kept)


def test_a_callback_may_change_the_states() -> None:
    pipe = exact_pipeline(V, 3)

    def first_is_g(pipe, step: int, t: Tensor, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        tensors["latents"][:, 0] = 2
        return tensors

    found = pipe("", 4, 5, stream(0, "back"), callback_on_step_end=first_is_g).sequences
    assert {s[0] for s in found} == {"G"}
    silent = pipe(
        "",
        4,
        5,
        stream(0, "back"),
        callback_on_step_end=lambda pipe, step, t, tensors: tensors,
        callback_on_step_end_tensor_inputs=[],
    )
    assert silent.sequences == pipe("", 4, 5, stream(0, "back")).sequences


def test_calls_that_do_not_fit_are_refused() -> None:
    pipe = exact_pipeline(V, 3)
    for wrong, message in (
        ({"prompt": "AT_"}, "'T'"),
        ({"prompt": ["A__", "A_"]}, r"one length, got \[2, 3\]"),
        ({"latents": torch.zeros(1, 4, dtype=torch.int64)}, r"\(1, 3\), got \(1, 4\)"),
        ({"output_type": "pil"}, "'pil'"),
        ({"callback_on_step_end_tensor_inputs": ["noise"]}, "noise"),
        ({"generator": [stream(0), stream(1)]}, "2 generators for 1 rows"),
        ({"num_inference_steps": 0}, "at least 1"),
    ):
        with pytest.raises(ValueError, match=message):
            pipe(**wrong)


def test_parts_of_several_alphabets_are_refused() -> None:
    cases = ((4, 3, "ACG"), (3, 4, "ACG"), (3, 3, "ACGT"), (3, 3, "A_G"))
    for denoiser, scheduler, alphabet in cases:
        with pytest.raises(ValueError, match="they agree"):
            MaskedDiffusionPipeline(
                ExactDenoiser(denoiser, 2),
                MaskedDiffusionScheduler(vocab_size=scheduler),
                alphabet,
                2,
            )


def loaded_by(folder: Path) -> list[MaskedDiffusionPipeline]:
    remote = {"custom_pipeline": "pipeline", "trust_remote_code": True}
    return [
        MaskedDiffusionPipeline.from_pretrained(folder),
        load_pipeline(folder),
        DiffusionPipeline.from_pretrained(folder, **remote),
    ]


def test_a_pipeline_comes_back_from_its_folder_in_every_way(tmp_path, monkeypatch) -> None:
    cache = "diffusers.utils.dynamic_modules_utils.HF_MODULES_CACHE"
    monkeypatch.setattr(cache, str(tmp_path / "modules"))
    denoiser = TransformerDenoiser(hidden=8, layers=1, heads=2, max_length=16)
    scheduler = MaskedDiffusionScheduler(vocab_size=20, noise="cosine", sampler="remdm_cap")
    pipe = MaskedDiffusionPipeline(denoiser.eval(), scheduler, PROTEIN, 16)
    pipe.set_progress_bar_config(disable=True)
    expected = pipe("", 5, 2, stream(0, "saved")).sequences
    pipe.save_pretrained(tmp_path / "pipe")
    for loaded in loaded_by(tmp_path / "pipe"):
        assert type(loaded) is MaskedDiffusionPipeline
        loaded.set_progress_bar_config(disable=True)
        assert loaded("", 5, 2, stream(0, "saved")).sequences == expected
        assert (loaded.config.alphabet, loaded.config.length) == (PROTEIN, 16)
        assert loaded.scheduler.config.sampler == "remdm_cap"


def test_the_package_offers_what_a_pipeline_is_made_of() -> None:
    assert diffreward.MaskedDiffusionPipeline is MaskedDiffusionPipeline
    assert diffreward.MaskedDiffusionScheduler is MaskedDiffusionScheduler
    assert diffreward.ConvDenoiser is ConvDenoiser
    assert diffreward.TransformerDenoiser is TransformerDenoiser


def test_progress_is_shown(capsys) -> None:
    pipe = exact_pipeline(V, 3)
    pipe.set_progress_bar_config(disable=False)
    pipe("", 7)
    assert "7/7" in capsys.readouterr().err
