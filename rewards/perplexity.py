"""How likely a text is to a causal language model: minus the logarithm of its perplexity.

Source: the perplexity of Jelinek et al. (1977), J. Acoust. Soc. Am. 62, S63. It is what FK steering
optimises and reports for text diffusion, Singhal et al. (2025), arXiv:2501.06848, section 4.2, with
GPT-2 as the reward and GPT-2 XL as the judge.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from diffreward.backbones import language_model, locate
from diffreward.reward import Reward
from diffreward.samples import Samples, texts


class Perplexity(Reward):
    """The mean log-probability of a text's tokens, in nats, at most 0. Not differentiable.

    The first token is predicted from the model's beginning of text, where it has one; else it is
    not scored. A text without a scored token, such as an empty one, has no score; one longer than
    the model's context is scored by what the context holds. Repetition is easy to predict, and so
    scores well: watch the diversity.

    Args:
        model: a hub id or a folder of a causal language model of transformers with its tokenizer;
            loaded by the first call, in float32.
        per: the unit of the mean. Texts of other tokenizers are compared per character.
        rows: texts that are evaluated at once.

    Raises:
        FileNotFoundError: if the folder does not exist or holds no model.
        ValueError: if rows is below 1.
    """

    def __init__(
        self, model: str = "gpt2", per: Literal["token", "character"] = "token", rows: int = 16
    ) -> None:
        if rows < 1:
            raise ValueError(f"rows is at least 1, got {rows}")
        # Names of the first models have no organisation.
        self.model = locate(model) if "/" in model else model
        self.per, self.rows = per, rows
        self._network: Any = None
        self._tokenizer: Any = None

    def __call__(self, samples: Samples, prompts: Sequence[str]) -> Tensor:
        strings = texts(samples)
        if self._network is None:
            self._network, self._tokenizer = language_model("AutoModelForCausalLM", self.model)
        context = getattr(self._network.config, "max_position_embeddings", None)
        start = self._tokenizer.bos_token_id
        begin = [] if start is None else [start]
        encoded = self._tokenizer(list(strings), add_special_tokens=False)["input_ids"]
        lines = [[*begin, *line][:context] for line in encoded]
        # Texts of like length together: the rest of a row is computed for nothing.
        order = sorted(range(len(lines)), key=lambda i: len(lines[i]))
        scores = torch.full((len(lines),), torch.nan)
        for i in range(0, len(order), self.rows):
            chosen = [row for row in order[i : i + self.rows] if len(lines[row]) > 1]
            if chosen:
                scores[chosen] = self._log_probs([lines[row] for row in chosen])
        units = [len(line) - 1 for line in lines]
        if self.per == "character":
            units = [len(string) for string in strings]
        return scores / torch.tensor(units).clamp(min=1)

    @torch.no_grad()
    def _log_probs(self, lines: Sequence[Sequence[int]]) -> Tensor:
        """Of all tokens of a line but the first, summed, (n,) on the CPU."""
        device = next(self._network.parameters()).device
        lengths = torch.tensor([len(line) for line in lines], device=device)
        # Filled up on the right, where nothing that counts can see it.
        ids = torch.zeros(len(lines), int(lengths.max()), dtype=torch.long, device=device)
        for row, line in zip(ids, lines, strict=True):
            row[: len(line)] = torch.tensor(line)
        seen = torch.arange(ids.shape[1], device=device) < lengths[:, None]
        with torch.autocast(device.type, enabled=False):
            logits = self._network(input_ids=ids, attention_mask=seen.long()).logits
        found = logits[:, :-1].log_softmax(-1).gather(2, ids[:, 1:, None]).squeeze(2)
        total: Tensor = (found * seen[:, 1:]).sum(1).cpu()
        return total

    def __getstate__(self) -> dict[str, Any]:
        # A copy, also in another process, loads the model by itself when first called.
        return {**self.__dict__, "_network": None, "_tokenizer": None}
