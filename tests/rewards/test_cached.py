import copy
import pickle
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from diffreward.conformance import check_reward
from diffreward.random import stream
from diffreward.rewards.cached import Cached
from diffreward.samples import Audio, Images, Samples, Texts, Tokens


class Ledger:
    """Scores a sequence by its number of A, writes down what it was asked, and fails on TTTT."""

    def __init__(self) -> None:
        self.asked: list[list[tuple[str, str]]] = []

    def __call__(self, samples: Samples, prompts: Sequence[str]) -> Tensor:
        strings = samples.strings if isinstance(samples, Texts) else samples.strings()
        self.asked.append([*zip(strings, prompts, strict=True)])
        scores = [string.count("A") + len(prompt) / 8 for string, prompt in self.asked[-1]]
        failed = [string == "TTTT" for string in strings]
        return torch.tensor(scores).masked_fill(torch.tensor(failed), torch.nan)


def dna(*strings: str) -> Tokens:
    return Tokens(torch.tensor([["ACGT".index(a) for a in string] for string in strings]), "ACGT")


def test_equal_sequences_are_asked_for_once_in_a_batch() -> None:
    ledger = Ledger()
    scores = Cached(ledger)(dna("AACG", "CCCC", "AACG", "AAAA", "CCCC"), [""] * 5)
    assert scores.tolist() == [2, 0, 2, 4, 0]
    assert ledger.asked == [[("AACG", ""), ("CCCC", ""), ("AAAA", "")]]


def test_only_new_sequences_are_asked_for_later() -> None:
    ledger = Ledger()
    reward = Cached(ledger)
    reward(dna("AACG", "CCCC"), ["", ""])
    assert reward(dna("CCCC", "GGGG", "AACG"), [""] * 3).tolist() == [0, 0, 2]
    assert reward(dna("GGGG"), [""]).tolist() == [0]
    assert ledger.asked[1:] == [[("GGGG", "")]]


def test_prompt_alphabet_and_kind_tell_samples_apart() -> None:
    ledger = Ledger()
    reward = Cached(ledger)
    assert reward(dna("AACG", "AACG"), ["a", "ab"]).tolist() == [2.125, 2.25]
    same_ids = Tokens(dna("AACG").ids, "CAGT")
    assert reward(same_ids, ["a"]).tolist() == [1.125]
    assert reward(Texts(("AACG", "AACG")), ["a", "a"]).tolist() == [2.125] * 2
    assert len(ledger.asked) == 3
    assert len(ledger.asked[2]) == 1


def test_failures_are_asked_for_again() -> None:
    ledger = Ledger()
    reward = Cached(ledger)
    assert reward(dna("TTTT", "TTTT", "AAAA"), [""] * 3).isnan().tolist() == [True, True, False]
    reward(dna("AAAA", "TTTT"), ["", ""])
    assert [len(batch) for batch in ledger.asked] == [2, 1]


def test_those_not_asked_for_the_longest_are_forgotten() -> None:
    ledger = Ledger()
    reward = Cached(ledger, size=2)
    for strings in (("AAAA", "CCCC"), ("AAAA",), ("GGGG",), ("AAAA",), ("CCCC",)):
        reward(dna(*strings), [""] * len(strings))
    assert [batch[0][0] for batch in ledger.asked] == ["AAAA", "GGGG", "CCCC"]


def test_a_batch_may_be_larger_than_the_memory() -> None:
    strings = ("AAAA", "AAAC", "AACC", "ACCC", "AAAA")
    assert Cached(Ledger(), size=1)(dna(*strings), [""] * 5).tolist() == [4, 3, 2, 1, 4]


def test_relaxed_tokens_go_through_with_their_gradient() -> None:
    calls = []

    def first(samples: Samples, prompts: Sequence[str]) -> Tensor:
        calls.append(len(samples))
        assert isinstance(samples, Tokens)
        return samples.ids[:, :, 0].sum(1)

    reward = Cached(first)
    weights = torch.full((2, 3, 4), 0.25).requires_grad_()
    reward(Tokens(weights, "ACGT"), ["", ""])
    scores = reward(Tokens(weights, "ACGT"), ["", ""])
    (gradient,) = torch.autograd.grad(scores.sum(), weights)
    assert gradient.sum() == 6
    assert calls == [2, 2]


class Brightness:
    """The mean of all pixels; counts the pictures it sees."""

    def __init__(self) -> None:
        self.seen = 0

    def __call__(self, samples: Samples, prompts: Sequence[str]) -> Tensor:
        assert isinstance(samples, Images)
        self.seen += len(samples)
        return samples.pixels.float().mean((1, 2, 3))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_pictures_of_equal_content_are_scored_once(dtype: torch.dtype) -> None:
    pixels = torch.rand(2, 3, 4, 4, generator=stream(0)).to(dtype)
    reward = Cached(Brightness())
    scores = reward(Images(pixels[[0, 1, 0]]), ["", "", ""])
    assert torch.equal(scores, Brightness()(Images(pixels[[0, 1, 0]]), [""] * 3))
    assert reward.reward.seen == 2
    # The same picture in another place in memory, not even in one piece.
    again = pixels.permute(0, 2, 3, 1).clone().permute(0, 3, 1, 2)
    assert torch.equal(reward(Images(again), ["", ""]), scores[:2])
    assert reward.reward.seen == 2
    reward(Images(pixels[:1]), ["another prompt"])
    assert reward.reward.seen == 3


def test_one_bit_one_dtype_or_one_size_make_another_picture() -> None:
    pixels = torch.zeros(1, 3, 2, 8)
    changed = pixels.clone()
    changed.view(torch.int32)[0, 2, 1, 7] = 1
    reward = Cached(Brightness())
    for other in (pixels, changed, -pixels, pixels.half(), pixels.reshape(1, 3, 4, 4)):
        reward(Images(other), [""])
    assert reward.reward.seen == 5


def test_sounds_of_another_rate_are_other_sounds() -> None:
    asked = []

    def seconds(samples: Samples, prompts: Sequence[str]) -> Tensor:
        assert isinstance(samples, Audio)
        asked.append(samples.rate)
        return torch.full((len(samples),), samples.waves.shape[2] / samples.rate)

    reward = Cached(seconds)
    scores = [reward(Audio(torch.zeros(1, 1, 8), rate), [""]).item() for rate in (8, 16, 8)]
    assert scores == [1, 0.5, 1] and asked == [8, 16]


def test_what_is_remembered_is_small_and_bounded() -> None:
    reward = Cached(Brightness(), size=3)
    for seed in range(8):
        reward(Images(torch.rand(1, 3, 64, 64, generator=stream(seed))), [""])
    assert len(pickle.dumps(reward)) < 3000


def test_pictures_with_a_gradient_go_through_and_without_grad_mode_do_not() -> None:
    pixels = torch.rand(1, 3, 4, 4, generator=stream(0)).requires_grad_()
    reward = Cached(Brightness())
    for _ in range(2):
        (gradient,) = torch.autograd.grad(reward(Images(pixels), [""]).sum(), pixels)
        assert torch.allclose(gradient, torch.full_like(gradient, 1 / 48))
    with torch.no_grad():
        for _ in range(2):
            reward(Images(pixels), [""])
    assert reward.reward.seen == 3


def test_no_samples_have_no_scores() -> None:
    assert Cached(Brightness())(Images(torch.zeros(0, 3, 4, 4)), []).shape == (0,)


def test_a_copy_remembers() -> None:
    reward = Cached(Ledger())
    reward(dna("AACG"), [""])
    for twin in (copy.deepcopy(reward), pickle.loads(pickle.dumps(reward))):
        assert twin(dna("AACG"), [""]).tolist() == [2]
        assert len(twin.reward.asked) == 1


def test_the_contract_is_kept() -> None:
    ids = torch.randint(4, (5, 2), generator=stream(0))
    check_reward(Cached(Ledger(), size=2), Tokens(ids, "ACGT"), ["a", "b", "a", "b", "a"])


def test_a_memory_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1, got 0"):
        Cached(Ledger(), size=0)
