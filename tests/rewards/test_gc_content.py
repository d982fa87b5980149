import pytest
import torch

from diffreward.alphabets import DNA, PROTEIN, RNA, ids_of
from diffreward.conformance import check_reward
from diffreward.random import stream
from diffreward.rewards.gc_content import GCContent
from diffreward.samples import Texts, Tokens


def dna(*strings: str) -> Tokens:
    return Tokens(torch.tensor(ids_of(strings, DNA)), DNA)


def test_the_score_is_minus_the_distance_of_the_share() -> None:
    scores = GCContent(0.5)(dna("GGCC", "GATC", "AAAT"), [""] * 3)
    assert scores.tolist() == [-0.5, 0.0, -0.5]
    assert GCContent(0.0)(dna("GATA"), [""]).tolist() == [-0.25]


def test_the_order_of_the_letters_does_not_matter() -> None:
    samples = Tokens(torch.tensor([[0, 0, 1, 2]]), "GTAC")
    assert GCContent(1.0)(samples, [""]).tolist() == [-0.5]


def test_rna_is_asked_for() -> None:
    samples = Tokens(torch.tensor(ids_of(["GCUU"], RNA)), RNA)
    assert GCContent(1.0, RNA)(samples, [""]).tolist() == [-0.5]
    with pytest.raises(ValueError, match="scores sequences of ACGT, got ACGU"):
        GCContent(1.0)(samples, [""])


def test_the_gradient_goes_to_g_and_c_alike() -> None:
    weights = torch.full((1, 5, 4), 0.25).requires_grad_()
    (gradient,) = torch.autograd.grad(GCContent(1.0)(Tokens(weights, DNA), [""]).sum(), weights)
    expected = torch.tensor([0.0, 1.0, 1.0, 0.0]) / 5
    torch.testing.assert_close(gradient, expected.expand(1, 5, 4))


def test_the_contract_is_kept() -> None:
    ids = torch.randint(4, (4, 30), generator=stream(0))
    check_reward(GCContent(0.4), Tokens(ids, DNA), [""] * 4)


@pytest.mark.parametrize(("target", "alphabet"), [(50.0, DNA), (-0.1, DNA), (0.5, "ATU")])
def test_impossible_targets_are_refused(target: float, alphabet: str) -> None:
    with pytest.raises(ValueError, match=r"0 to 1|no G or no C"):
        GCContent(target, alphabet)


def test_only_tokens_of_nucleic_acids_are_scored() -> None:
    with pytest.raises(TypeError, match="scores Tokens"):
        GCContent(0.5)(Texts(("GC",)), [""])
    with pytest.raises(ValueError, match="got ACDE"):
        GCContent(0.5)(Tokens(torch.zeros(1, 4, dtype=torch.int64), PROTEIN), [""])
