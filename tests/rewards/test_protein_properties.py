import pytest
import torch

from diffreward.alphabets import DNA, PROTEIN, ids_of
from diffreward.conformance import check_reward
from diffreward.random import stream
from diffreward.reward import Reward
from diffreward.rewards.protein_properties import Hydropathy, InVivoStability, NetCharge
from diffreward.samples import Texts, Tokens

pytest.importorskip("Bio.SeqUtils")

PROTEINS = Tokens(torch.randint(20, (5, 60), generator=stream(0)), PROTEIN)


def protein(*strings: str) -> Tokens:
    return Tokens(torch.tensor(ids_of(strings, PROTEIN)), PROTEIN)


def scores(reward: Reward, samples: Tokens) -> list[float]:
    return reward(samples, [""] * len(samples)).tolist()


def test_hydropathy_is_the_mean_of_the_scale() -> None:
    assert scores(Hydropathy(), protein("IIII", "RRRR", "IRIR")) == pytest.approx([4.5, -4.5, 0.0])


def test_stability_depends_on_neighbours_in_order() -> None:
    # 10 / 2 times the weight of the pair: W then M has 24.68, M then W has 1.
    assert scores(InVivoStability(), protein("WM", "MW")) == pytest.approx([-123.4, -5.0], rel=1e-6)


def test_charges_of_free_ends_cancel_between_their_pks() -> None:
    # At the middle of 7.5 and 3.55, the ends of a protein without charged residues are opposite.
    assert scores(NetCharge(ph=(7.5 + 3.55) / 2), protein("GGGG")) == pytest.approx([0], abs=1e-6)
    assert scores(NetCharge(), protein("KKKK", "DDDD")) == pytest.approx([4, -4], abs=0.3)


def test_properties_equal_biopython() -> None:
    from Bio.SeqUtils.ProtParam import ProteinAnalysis

    known = [ProteinAnalysis(string) for string in PROTEINS.strings()]
    assert scores(Hydropathy(), PROTEINS) == pytest.approx([p.gravy() for p in known], abs=1e-6)
    unstable = [p.instability_index() for p in known]
    assert scores(InVivoStability(), PROTEINS) == pytest.approx([-u for u in unstable], rel=1e-5)
    for ph in (3.0, 7.0, 11.0):
        charges = [p.charge_at_pH(ph) for p in known]
        assert scores(NetCharge(ph), PROTEINS) == pytest.approx(charges, abs=1e-5)


def test_ends_have_their_own_pks() -> None:
    from Bio.SeqUtils.ProtParam import ProteinAnalysis

    for string in ("MGGD", "EGGE", "KGGG"):
        expected = ProteinAnalysis(string).charge_at_pH(6.5)
        assert scores(NetCharge(6.5), protein(string)) == pytest.approx([expected], abs=1e-6)


@pytest.mark.parametrize("reward", [Hydropathy(), InVivoStability(), NetCharge()])
def test_relaxed_tokens_score_the_mean_over_sequences(reward: Reward) -> None:
    weights = torch.zeros(1, 3, 20)
    for position, letters in enumerate(("MK", "WD", "CE")):
        weights[0, position, ids_of([letters], PROTEIN)[0]] = torch.tensor([0.25, 0.75])
    weights.requires_grad_()
    found = reward(Tokens(weights, PROTEIN), [""])
    strings = [a + b + c for a in "MK" for b in "WD" for c in "CE"]
    each = reward(protein(*strings), [""] * 8)
    law = torch.tensor([[0.25, 0.75]] * 3)
    expected = torch.einsum("a,b,c->abc", *law).flatten() @ each
    torch.testing.assert_close(found, expected[None])
    (gradient,) = torch.autograd.grad(found.sum(), weights)
    assert bool(gradient.abs().sum() > 0)


@pytest.mark.parametrize("reward", [Hydropathy(), InVivoStability(), NetCharge()])
def test_the_contract_is_kept(reward: Reward) -> None:
    check_reward(reward, PROTEINS, [""] * 5)


def test_what_is_no_protein_is_refused() -> None:
    with pytest.raises(ValueError, match="pH is 0 to 14"):
        NetCharge(15.0)
    with pytest.raises(ValueError, match="got ACGT"):
        Hydropathy()(Tokens(torch.zeros(1, 3, dtype=torch.int64), DNA), [""])
    with pytest.raises(TypeError, match="scores Tokens"):
        InVivoStability()(Texts(("MKV",)), [""])
