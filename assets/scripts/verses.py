"""The plays that the text pipeline learns: their tokens, their windows and the bound on them.

Source of the bound: Ou et al. (2024), arXiv:2406.03736, and Nie et al. (2025), arXiv:2502.09992.
Masking each of N tokens with probability t ~ U(0, 1) and weighting by 1/t has the same mean as
masking n ~ U{1..N} of them and weighting by N/n, which varies less.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor
from torch.nn import functional as F
from transformers import ModernBertForMaskedLM, PreTrainedTokenizerFast

BOS, EOS, PAD, MASK, UNKNOWN = SPECIALS = ("<bos>", "<eos>", "<pad>", "<mask>", "<unk>")

Split = Literal["train", "held out"]


def read_plays(data: Path, split: Split) -> str:
    """Return the first nine tenths of the plays, or the last tenth, which no model sees.

    Args:
        data: Folder with ``tinyshakespeare.txt``.
        split: Which part.
    """
    text = (data / "tinyshakespeare.txt").read_text()
    cut = text.index("\n", len(text) * 9 // 10) + 1
    return text[:cut] if split == "train" else text[cut:]


def build_tokenizer(text: str, size: int) -> PreTrainedTokenizerFast:
    """Return a tokenizer of ``size`` tokens: the marks, the characters and their frequent runs.

    Args:
        text: What the frequencies are counted in.
        size: Size of the vocabulary, the five marks included.
    """
    tokenizer = Tokenizer(models.BPE(unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=[*SPECIALS], show_progress=False)
    tokenizer.train_from_iterator([text], trainer)
    mark = [(BOS, tokenizer.token_to_id(BOS))]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=mark
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        mask_token=MASK,
        unk_token=UNKNOWN,
        # What a prompt is continued by has to stand next to it.
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )


@dataclass(frozen=True)
class Plays:
    """Tokens of running text and the places where a line begins.

    Args:
        ids: The T tokens, int64.
        characters: Number of characters of each token, of shape (T,).
        starts: Indices of the tokens that begin a line.
        bos: The token that opens every window.
    """

    ids: Tensor
    characters: Tensor
    starts: Tensor
    bos: int

    def windows(self, starts: Tensor, length: int) -> Tensor:
        """Return the windows of ``length`` tokens, the opening one included, of shape (B, L)."""
        rows = self.ids[starts[:, None] + torch.arange(length - 1)]
        return F.pad(rows, (1, 0), value=self.bos)

    def batch(self, size: int, length: int, generator: torch.Generator) -> Tensor:
        """Return ``size`` windows drawn at random, of shape (B, L)."""
        usable = int((self.starts <= len(self.ids) - length + 1).sum())
        drawn = torch.randint(usable, (size,), generator=generator)
        return self.windows(self.starts[drawn], length)

    def apart(self, length: int) -> Tensor:
        """Return the starts of as many windows as fit without overlap, in their order."""
        chosen, free = [], 0
        for start in self.starts.tolist():
            if free <= start <= len(self.ids) - length + 1:
                chosen.append(start)
                free = start + length - 1
        return torch.tensor(chosen)


def tokenize(text: str, tokenizer: PreTrainedTokenizerFast) -> Plays:
    """Return the tokens of a text that begins with a line."""
    encoded = tokenizer.backend_tokenizer.encode(text, add_special_tokens=False)
    offsets = torch.tensor(encoded.offsets)
    begins = [start == 0 or text[start - 1] == "\n" for start in offsets[:, 0].tolist()]
    # An empty line opens no window: nothing would tell it from the end of a speech.
    full = [text[start] != "\n" for start in offsets[:, 0].tolist()]
    starts = (torch.tensor(begins) & torch.tensor(full)).nonzero().squeeze(1)
    characters = offsets[:, 1] - offsets[:, 0]
    return Plays(torch.tensor(encoded.ids), characters, starts, tokenizer.bos_token_id)


def draw_masks(prefixes: Tensor, length: int, generator: torch.Generator) -> Tensor:
    """Return which tokens to mask, of shape (B, L), any number from one to all being as likely.

    Args:
        prefixes: How many tokens at the beginning of each of the B windows are never masked.
        length: Tokens per window.
        generator: Source of randomness.
    """
    rows = len(prefixes)
    free = length - prefixes
    # One draw per row from its own slice of (0, 1]: the counts of a batch cover all levels.
    slices = torch.randperm(rows, generator=generator)
    levels = (slices + torch.rand(rows, generator=generator)) / rows
    counts = (levels * free).floor().clamp(max=free - 1) + 1
    scores = torch.rand(rows, length, generator=generator)
    kept = torch.arange(length) < prefixes[:, None]
    return scores.masked_fill(kept, 2.0).argsort(1).argsort(1) < counts[:, None]


def masked_nats(model: ModernBertForMaskedLM, windows: Tensor, masks: Tensor, mask: int) -> Tensor:
    """Return the mean over the masked tokens of each window of -log p, in nats, of shape (B,).

    Args:
        model: Predicts all tokens from those that are left.
        windows: Tokens, of shape (B, L).
        masks: Which of them are masked, of shape (B, L), one at least in each row.
        mask: The token that stands for them.
    """
    logits = model(input_ids=windows.masked_fill(masks, mask)).logits
    nats = F.cross_entropy(logits[masks].float(), windows[masks], reduction="none")
    return torch.zeros(masks.shape).masked_scatter(masks, nats).sum(1) / masks.sum(1)
