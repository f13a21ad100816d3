"""Subword tokenizer: a SentencePiece model trained on the train split, the blank in place of its unknown piece."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from typing import Self

from asrkit.errors import DataError, RecipeError, StorageError, TrustError, nearest, printable
from asrkit.tokenizers import BLANK, SPACE_MARK, Tokenizer, name_symbols


class SentencePieceTokenizer(Tokenizer):
    """Subword pieces of a SentencePiece model (Kudo and Richardson, EMNLP 2018; unigram: Kudo, ACL 2018).

    The blank takes id 0, the place of the model's unknown piece: a text that would need the unknown piece is refused.
    """

    name = "sentencepiece"

    def __init__(self, model: bytes) -> None:
        import sentencepiece

        self.model = bytes(model)
        _refuse_rewriting(self.model)
        try:
            p = self._processor = sentencepiece.SentencePieceProcessor(model_proto=self.model)
            pieces = [p.id_to_piece(i) for i in range(p.get_piece_size() if self.model else 0)]
        except (RuntimeError, UnicodeDecodeError) as error:
            raise StorageError(f"not a SentencePiece model ({error})", reason="tokenizer_file") from error
        if not pieces:
            raise StorageError("not a SentencePiece model: it has no pieces", reason="tokenizer_file")
        self._pieces = [i for i in range(len(pieces)) if not (p.is_unknown(i) or p.is_control(i) or p.is_unused(i))]
        self._labels = {piece: label for label, piece in enumerate(self._pieces, start=1)}
        self.labels = [BLANK, *(pieces[i] for i in self._pieces)]
        odd = [pieces[i] for i in self._pieces if p.is_byte(i) or printable(pieces[i]) != pieces[i]]
        if odd:
            raise TrustError(
                f"the SentencePiece model has pieces of bytes or control characters: {odd[0]!r}",
                fix="train it without byte_fallback, on normalized texts",
                reason="tokenizer_model",
            )

    @classmethod
    def fit(cls, texts: Iterable[str], size: int, model_type: str = "unigram") -> Self:
        """Train a model with V = `size` labels, blank included, on the texts of the train split.

        The same texts give the same model in any order. Raises RecipeError when `size` is not possible with these
        texts or `model_type` is neither `unigram` nor `bpe`; DataError if a character cannot be a piece.
        """
        if model_type not in ("unigram", "bpe"):
            raise RecipeError(
                f"model_type {model_type!r}", possible=nearest(model_type, ("unigram", "bpe")), reason="unknown_option"
            )
        lines = sorted(text for text in texts if text)
        if not lines:
            raise DataError("no text to train the sentencepiece tokenizer on", reason="no_symbols")
        tokenizer = cls(_train_sentencepiece(lines, size, model_type))
        lost = [c for c in sorted(set("".join(lines))) if tokenizer.unknown(c)]
        if lost or tokenizer.size != size:
            raise DataError(
                f"sentencepiece made {tokenizer.size} of {size} labels, none of them for {name_symbols(lost)}",
                fix="normalize the texts, or map these characters to something else",
                reason="unknown_character",
            )
        return tokenizer

    def unknown(self, text: str) -> list[str]:
        """Every character of `text` that no piece covers, in order (U+2581 too: it would come back as a space)."""
        ids, pieces = self._processor.encode(text), self._processor.encode(text, out_type=str)
        lost = [c for i, piece in zip(ids, pieces, strict=True) if i not in self._labels for c in piece]
        return lost + [c for c in text if c == SPACE_MARK]

    def _encode(self, text: str) -> list[int]:
        return [self._labels[piece] for piece in self._processor.encode(text)]

    def _decode(self, ids: list[int]) -> str:
        return self._processor.decode([self._pieces[i - 1] for i in ids])

    def _starts_word(self, label: int) -> bool:
        return self.labels[label].startswith(SPACE_MARK)

    def files(self) -> dict[str, bytes]:
        """`tokenizer.model`, the SentencePiece model as trained."""
        return {"tokenizer.model": self.model}

    @classmethod
    def _from_bytes(cls, content: bytes) -> Self:
        return cls(content)


NORMALIZERS = (3, 5)  # fields of ModelProto: how texts are changed before encoding, and after decoding
CHARACTER_MAP, RULES = 2, 6  # fields of NormalizerSpec


def _refuse_rewriting(model: bytes) -> None:
    """Raise TrustError for a model with character maps or rules of its own.

    Text rules are asrkit's (`asrkit.text`). Such a map is a binary table that the library walks with few checks, and
    one for decoding would put any text, control characters too, in place of what was recognized.
    """
    for field, spec in _fields(model):
        if field in NORMALIZERS and isinstance(spec, bytes):
            maps = [part for part, value in _fields(spec) if part in (CHARACTER_MAP, RULES) and value]
            if maps:
                raise TrustError(
                    "the SentencePiece model has a character map of its own",
                    possible="models trained with normalization_rule_name=identity, as asrkit does",
                    fix="train the tokenizer with asrkit, and choose the text rules in the recipe",
                    reason="tokenizer_model",
                )


def _fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """(number, value) of the fields of a protocol buffers message, in order. Raises StorageError for what is none."""
    at, end = 0, len(message)

    def number() -> int:
        nonlocal at
        value = shift = 0
        while at < end and shift < 64:
            byte = message[at]
            at, value, shift = at + 1, value | (byte & 127) << shift, shift + 7
            if byte < 128:
                return value
        raise StorageError("not a SentencePiece model (damaged)", reason="tokenizer_file")

    while at < end:
        key = number()
        kind = key & 7
        if kind == 0:
            yield key >> 3, number()
            continue
        size = number() if kind == 2 else {1: 8, 5: 4}.get(kind, end + 1)
        if at + size > end:
            raise StorageError("not a SentencePiece model (damaged)", reason="tokenizer_file")
        at += size
        yield key >> 3, message[at - size : at]


def _train_sentencepiece(lines: list[str], size: int, model_type: str) -> bytes:
    """The serialized model; nothing touches the disk or the terminal."""
    import sentencepiece

    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines),
            model_writer=model,
            vocab_size=size,
            model_type=model_type,
            unk_id=0,
            bos_id=-1,
            eos_id=-1,
            pad_id=-1,
            normalization_rule_name="identity",  # the text rules have spoken; NFKC would change characters
            character_coverage=1.0,
            # The library skips longer lines without a word.
            max_sentence_length=max(len(line.encode()) for line in lines) + 1,
            num_threads=1,  # sums of floats in one order: the same model every time
            minloglevel=2,
        )
    except (RuntimeError, ValueError) as error:
        raise RecipeError(
            f"sentencepiece cannot make {size} {model_type} labels from {len(lines)} sentences ({error})",
            fix="change `size` as the message says",
            reason="sentencepiece_size",
        ) from error
    return model.getvalue()
