import copy
import math
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from diffreward.alphabets import DNA, PROTEIN, ids_of
from diffreward.conformance import check_reward
from diffreward.random import stream
from diffreward.rewards.esm import ESMLikelihood
from diffreward.samples import Tokens

# The vocabulary of the published models of ESM-2.
VOCABULARY = ["<cls>", "<pad>", "<eos>", "<unk>", *"LAGVSERTIDPKQNFYMHWCXBUZO", *".-"]
VOCABULARY += ["<null_1>", "<mask>"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import EsmConfig, EsmForMaskedLM

    path = tmp_path_factory.mktemp("esm")
    config = EsmConfig(
        vocab_size=len(VOCABULARY),
        mask_token_id=VOCABULARY.index("<mask>"),
        pad_token_id=VOCABULARY.index("<pad>"),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=64,
        position_embedding_type="rotary",
        token_dropout=True,
        emb_layer_norm_before=False,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = EsmForMaskedLM(config)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.5)
    model.save_pretrained(path)
    (path / "vocab.txt").write_text("\n".join(VOCABULARY))
    return path


def protein(*strings: str) -> Tokens:
    return Tokens(torch.tensor(ids_of(strings, PROTEIN)), PROTEIN)


def by_hand(folder: Path, string: str) -> float:
    """One masked protein after the other, through the tokenizer."""
    from transformers import EsmForMaskedLM, EsmTokenizer

    tokenizer: Any = EsmTokenizer.from_pretrained(folder)
    model: Any = EsmForMaskedLM.from_pretrained(folder).eval()
    total = 0.0
    for i, residue in enumerate(string):
        inputs = tokenizer(string[:i] + "<mask>" + string[i + 1 :], return_tensors="pt")
        with torch.no_grad():
            law = model(**inputs).logits[0, i + 1].softmax(-1)
        total += math.log(float(law[tokenizer.convert_tokens_to_ids(residue)]))
    return total / len(string)


@pytest.mark.parametrize("rows", [1, 7, 64])
def test_masked_batches_equal_the_loop(folder: Path, rows: int) -> None:
    strings = ("MKVLAAGIVG", "WWHHCCPPNQ", "DEFRSTYIKL")
    scores = ESMLikelihood(str(folder), rows)(protein(*strings), [""] * 3)
    assert scores.dtype == torch.float32
    expected = [by_hand(folder, string) for string in strings]
    assert scores.tolist() == pytest.approx(expected, abs=1e-5)
    assert max(expected) - min(expected) > 0.1


def test_relaxed_tokens_are_scored_by_their_largest_weights(folder: Path) -> None:
    ids = torch.tensor(ids_of(["MKVLA"], PROTEIN))
    weights = 0.1 + torch.nn.functional.one_hot(ids, 20).float()
    reward = ESMLikelihood(str(folder))
    found = reward(Tokens(weights.requires_grad_(), PROTEIN), [""])
    assert torch.equal(found, reward(protein("MKVLA"), [""]))
    assert not found.requires_grad


def test_the_contract_is_kept(folder: Path) -> None:
    ids = torch.randint(20, (4, 6), generator=stream(0))
    check_reward(ESMLikelihood(str(folder), rows=5), Tokens(ids, PROTEIN), [""] * 4)


def test_copies_load_the_model_by_themselves(folder: Path) -> None:
    reward = ESMLikelihood(str(folder))
    before = reward(protein("MKV"), [""])
    for twin in (copy.deepcopy(reward), pickle.loads(pickle.dumps(reward))):
        assert twin._network is None
        assert torch.equal(twin(protein("MKV"), [""]), before)


def test_loading_draws_no_random_numbers(folder: Path) -> None:
    state = torch.get_rng_state()
    with torch.inference_mode():
        ESMLikelihood(str(folder))(protein("MKV"), [""])
    assert torch.equal(torch.get_rng_state(), state)


def test_what_is_no_protein_model_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        ESMLikelihood(str(tmp_path / "nowhere"))
    with pytest.raises(FileNotFoundError, match=r"config\.json"):
        ESMLikelihood(str(tmp_path))
    with pytest.raises(ValueError, match="rows is at least 1"):
        ESMLikelihood(str(folder), rows=0)
    with pytest.raises(ValueError, match="got ACGT"):
        ESMLikelihood(str(folder))(Tokens(torch.zeros(1, 3, dtype=torch.int64), DNA), [""])


def test_a_vocabulary_without_a_residue_is_refused(folder: Path, tmp_path: Path) -> None:
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "vocab.txt").write_text("\n".join(token for token in VOCABULARY if token != "W"))
    with pytest.raises(ValueError, match=r"has no \['W'\]"):
        ESMLikelihood(str(tmp_path))(protein("MKV"), [""])
