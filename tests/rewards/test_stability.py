import pickle
from pathlib import Path

import pytest
import torch
from backbones import backbone, write_pdb
from torch import Generator, Tensor

from diffreward.alphabets import PROTEIN
from diffreward.conformance import check_reward
from diffreward.rewards.stability import ProteinStability
from diffreward.samples import Tokens
from diffreward.sequences.protein_oracle import ProteinMPNNOracle
from diffreward.sequences.structure import read_distinct

LENGTH = 7


@pytest.fixture
def oracle(tmp_path: Path) -> ProteinMPNNOracle:
    torch.manual_seed(0)
    model = ProteinMPNNOracle(hidden=16, layers=1, neighbours=4)
    model.save_pretrained(tmp_path / "oracle")
    return model.eval()


@pytest.fixture
def file(tmp_path: Path) -> str:
    return write_pdb(tmp_path / "a.pdb", backbone(LENGTH)["coordinates"][0], "G" * LENGTH)


def sequences(count: int) -> Tensor:
    return torch.randint(20, (count, LENGTH), generator=Generator().manual_seed(1))


def test_the_score_is_the_oracles_prediction(
    oracle: ProteinMPNNOracle, tmp_path: Path, file: str
) -> None:
    reward = ProteinStability(str(tmp_path / "oracle"))
    backbones, which = read_distinct([file, file])
    expected = oracle(sequences(2), **{name: x[which] for name, x in backbones.items()})
    rows = torch.nn.functional.one_hot(sequences(2), 20).float().requires_grad_()
    for ids in (sequences(2), rows):
        scores = reward(Tokens(ids, PROTEIN), [file, file])
        torch.testing.assert_close(scores, expected)
    scores.sum().backward()
    assert rows.grad is not None and (rows.grad != 0).all()
    twin = pickle.loads(pickle.dumps(reward))
    torch.testing.assert_close(twin(Tokens(rows, PROTEIN), [file, file]), expected)


def test_the_contract_is_kept(oracle: ProteinMPNNOracle, tmp_path: Path, file: str) -> None:
    reward = ProteinStability(str(tmp_path / "oracle"))
    check_reward(reward, Tokens(sequences(3), PROTEIN), [file, f"{file}:A", file])


def test_a_backbone_of_another_length_is_refused(
    oracle: ProteinMPNNOracle, tmp_path: Path, file: str
) -> None:
    with pytest.raises(ValueError, match="expected 3 residues"):
        ProteinStability(str(tmp_path / "oracle"))(Tokens(sequences(1)[:, :3], PROTEIN), [file])


def test_a_missing_oracle_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        ProteinStability(str(tmp_path / "nowhere"))
