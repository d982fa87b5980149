from pathlib import Path

import torch
from backbones import backbone
from torch import Generator, Tensor

from diffreward.sequences.denoisers.inverse_folding import InverseFoldingDenoiser
from diffreward.sequences.protein_oracle import ProteinMPNNOracle

LENGTH, K = 9, 5


def oracle(**settings: object) -> ProteinMPNNOracle:
    torch.manual_seed(0)
    sizes = {"hidden": 16, "layers": 2, "neighbours": K, "dropout": 0.0}
    return ProteinMPNNOracle(**{**sizes, **settings})


def sequences(count: int) -> Tensor:
    return torch.randint(20, (count, LENGTH), generator=Generator().manual_seed(1))


def rows(count: int) -> dict[str, Tensor]:
    return {name: x.expand(count, *x.shape[1:]) for name, x in backbone(LENGTH).items()}


def test_a_prediction_is_the_head_of_the_mean_residue() -> None:
    model, ids = oracle(), sequences(3)
    encoding = model.graph.encode(**rows(3))
    weights = torch.nn.functional.one_hot(ids, 21).float()
    first, _, second = model.W_out_mlp
    nodes = model.graph.decode(encoding, weights).mean(1)
    expected = torch.stack([second(first(node).relu()).squeeze(0) for node in nodes])
    found = model(ids, **rows(3))
    assert found.shape == (3,) and found.dtype == torch.float32
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(model(weights, **encoding._asdict()), expected)


def test_training_fits_measurements(tmp_path: Path) -> None:
    model, ids = oracle(layers=1), sequences(8)
    # How many residues of the sequence are hydrophobic.
    labels = torch.isin(ids, torch.tensor([0, 4, 7, 9, 10, 17])).float().sum(1) - 2
    optimiser = torch.optim.AdamW(model.parameters(), lr=2e-2)
    losses = []
    for _ in range(40):
        loss = (model(ids, **rows(8)) - labels).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.1 * losses[0]
    model.save_pretrained(tmp_path)
    twin = ProteinMPNNOracle.from_pretrained(tmp_path)
    assert torch.equal(twin(ids, **rows(8)), model.eval()(ids, **rows(8)))


def test_an_oracle_starts_from_what_a_denoiser_knows() -> None:
    torch.manual_seed(2)
    denoiser = InverseFoldingDenoiser(hidden=16, layers=2, neighbours=K)
    model = ProteinMPNNOracle.from_denoiser(denoiser)
    assert model.config.neighbours == K
    for name, parameter in denoiser.graph.state_dict().items():
        assert torch.equal(model.graph.state_dict()[name], parameter)
    with torch.no_grad():
        next(model.graph.parameters()).zero_()
    assert next(denoiser.graph.parameters()).any()


def test_relaxed_sequences_have_gradients() -> None:
    weights = torch.nn.functional.one_hot(sequences(2), 21).float().requires_grad_()
    oracle()(weights, **rows(2)).sum().backward()
    assert weights.grad is not None and (weights.grad != 0).all()
