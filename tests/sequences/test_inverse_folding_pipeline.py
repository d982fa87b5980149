from pathlib import Path

import pytest
import torch
from backbones import SHARED, backbone, write_pdb
from torch import Generator

from diffreward.sequences.denoisers.inverse_folding import InverseFoldingDenoiser
from diffreward.sequences.inverse_folding_pipeline import InverseFoldingPipeline
from diffreward.sequences.scheduler import MaskedDiffusionScheduler

LENGTH, MASK = 9, 20


def pipeline(encode_once: bool = True) -> InverseFoldingPipeline:
    torch.manual_seed(0)
    denoiser = InverseFoldingDenoiser(hidden=16, layers=2, neighbours=5)
    pipe = InverseFoldingPipeline(
        denoiser.eval(), MaskedDiffusionScheduler(vocab_size=MASK), encode_once=encode_once
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def files(folder: Path, length: int = LENGTH) -> list[str]:
    return [
        write_pdb(folder / f"{s}.pdb", backbone(length, s)["coordinates"][0], "G" * length)
        for s in (0, 1)
    ]


def test_a_design_depends_on_its_backbone_and_generator_only(tmp_path: Path) -> None:
    one, other = files(tmp_path)
    sources = [Generator().manual_seed(i) for i in (0, 0, 1)]
    found = pipeline()([one, other, one], 10, generator=sources).sequences
    alone = pipeline()(f"{other}:A", 10, generator=Generator().manual_seed(0)).sequences
    assert alone == found[1:2]
    assert len(set(found)) == 3 and {len(string) for string in found} == {LENGTH}


def test_encoding_once_changes_the_cost_only(tmp_path: Path) -> None:
    sequences, conditions = [], []
    for encode_once in (True, False):
        pipe = pipeline(encode_once)
        conditions.append(set(pipe.encode_prompt(files(tmp_path))))
        source = Generator().manual_seed(0)
        sequences.append(pipe(files(tmp_path), 10, generator=source).sequences)
    assert sequences[0] == sequences[1]
    assert conditions == [
        {"template", "nodes", "edges", "neighbours"},
        {"template", "coordinates", "residue_index", "chain"},
    ]


def test_a_prompt_is_a_template_that_is_free_everywhere(tmp_path: Path) -> None:
    encoded = pipeline().encode_prompt(files(tmp_path))
    assert torch.equal(encoded["template"], torch.full((2, LENGTH), MASK))
    assert {len(tensor) for tensor in encoded.values()} == {2}
    assert not any(tensor.requires_grad for tensor in encoded.values())


def test_backbones_of_one_call_have_one_length(tmp_path: Path) -> None:
    (tmp_path / "longer").mkdir()
    prompts = [files(tmp_path)[0], files(tmp_path / "longer", LENGTH + 1)[0]]
    with pytest.raises(ValueError, match="one length"):
        pipeline()(prompts, 2)


def test_a_saved_pipeline_designs_the_same(tmp_path: Path) -> None:
    pipe = pipeline(encode_once=False)
    pipe.save_pretrained(tmp_path / "pipe")
    twin = InverseFoldingPipeline.from_pretrained(tmp_path / "pipe")
    twin.set_progress_bar_config(disable=True)
    assert twin.config.encode_once is False
    prompt = files(tmp_path)[0]
    first, second = (p(prompt, 5, generator=Generator().manual_seed(0)) for p in (pipe, twin))
    assert first.sequences == second.sequences


def test_a_real_backbone_gets_a_design() -> None:
    if not SHARED.exists():
        pytest.skip(f"{SHARED} is not here")
    found = pipeline()(str(SHARED / "6MRR.pdb"), 3, generator=Generator().manual_seed(0)).sequences
    assert [len(string) for string in found] == [68]
