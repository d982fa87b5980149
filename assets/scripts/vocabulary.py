"""A CLIP tokenizer for a handful of words."""

from transformers import CLIPTokenizer

MAX_LENGTH = 16
"""Tokens per prompt, the two marks included."""

START, END = "<|startoftext|>", "<|endoftext|>"
WORD_END = "</w>"


def build_tokenizer(words: tuple[str, ...]) -> CLIPTokenizer:
    """Return a byte-level tokenizer to which each of ``words`` is one token.

    Any other word falls apart into tokens of single bytes, which no training prompt contains.
    The end mark has the largest id, because CLIP text towers look for their summary there.

    Args:
        words: Lower-case words of the letters a to z.
    """
    symbols = _byte_symbols()
    merges: list[tuple[str, str]] = []
    tokens = [*symbols, *(symbol + WORD_END for symbol in symbols)]
    while pair := _next_merge(words, merges):
        merges.append(pair)
        tokens.append("".join(pair))
    ids = {token: index for index, token in enumerate([*tokens, START, END])}
    return CLIPTokenizer(vocab=ids, merges=merges, model_max_length=MAX_LENGTH)


def _byte_symbols() -> list[str]:
    """Return the 256 characters that stand for bytes in byte-level vocabularies."""
    from tokenizers.pre_tokenizers import ByteLevel

    return sorted(ByteLevel.alphabet())


def _next_merge(words: tuple[str, ...], merges: list[tuple[str, str]]) -> tuple[str, str] | None:
    """Return the first two pieces of a word that is not yet one token."""
    for word in words:
        pieces = _split(word, merges)
        if len(pieces) > 1:
            return pieces[0], pieces[1]
    return None


def _split(word: str, merges: list[tuple[str, str]]) -> list[str]:
    """Apply the merges, in their order, to the letters of a word."""
    pieces = [*word[:-1], word[-1] + WORD_END]
    for left, right in merges:
        index = 0
        while index < len(pieces) - 1:
            if pieces[index : index + 2] == [left, right]:
                pieces[index : index + 2] = [left + right]
            index += 1
    return pieces
