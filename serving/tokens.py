"""What the characters of generated tokens are, exactly, for byte-level BPE and sentencepiece vocabularies.

A token is a run of bytes, not of characters: one character may be spread over several tokens. So each token's bytes are
looked up, and text, character offsets and stop strings all come from the bytes.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

DAMAGED = "\ufffd"  # what decoders show for bytes that are no character
_BYTE_PIECE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's printable stand-in for every byte."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(256 + i): byte for i, byte in enumerate(others)}


class TokenBytes:
    """`self[id]` is the bytes that a token adds to the text; special tokens add none."""

    def __init__(self, tokenizer: Any):
        self.tokenizer = tokenizer
        self.special = set(tokenizer.all_special_ids)
        added = getattr(tokenizer, "added_tokens_decoder", {})
        self.special |= {id for id, token in added.items() if token.special}
        backend = getattr(tokenizer, "backend_tokenizer", None)
        self.byte_level = backend is not None and "ByteLevel" in repr(backend.decoder)
        self.alphabet = _byte_alphabet()
        self.known: dict[int, bytes] = {}

    def __getitem__(self, id: int) -> bytes:
        if (found := self.known.get(id)) is None:
            found = self.known[id] = self._look_up(id)
        return found

    def _look_up(self, id: int) -> bytes:
        piece = None if id in self.special else self.tokenizer.convert_ids_to_tokens(id)
        if piece is None:
            return b""
        if self.byte_level:
            if all(char in self.alphabet for char in piece):
                return bytes(self.alphabet[char] for char in piece)
            return piece.encode()  # an added token is written as it is
        if byte := _BYTE_PIECE.fullmatch(piece):
            return bytes([int(byte[1], 16)])
        return piece.replace("\u2581", " ").encode()

    def decode(self, ids: Sequence[int], stop: Sequence[str] = ()) -> tuple[str, list[tuple[int, int]], bool]:
        """The tokens' text up to the earliest stop string; for each token the characters [start, end) that it completes (what
        lies beyond the text has no width); and whether a stop string was met."""
        text, ends = spans([self[id] for id in ids])
        places = [place for word in stop if (place := text.find(word)) >= 0]
        if not places:
            return text, ends, False
        cut = min(places)
        return text[:cut], [(min(start, cut), min(end, cut)) for start, end in ends], True

    def stopped_at(self, ids: Sequence[int], text: str, stop: Sequence[str]) -> str:
        """The stop string that `decode` cut the text at; "" for none."""
        whole = self.decode(ids)[0] if stop else text
        return next((word for word in stop if whole.startswith(word, len(text))), "")


def spans(pieces: Sequence[bytes]) -> tuple[str, list[tuple[int, int]]]:
    """The text of the pieces, without an unfinished character at its end, and the characters [start, end) that each completes.

    A character that is spread over several pieces belongs to the one that holds its last byte.
    """
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    text, ends = [], [0]
    for piece in pieces:
        text.append(decoder.decode(piece))
        ends.append(ends[-1] + len(text[-1]))
    return "".join(text), list(pairwise(ends))


def align(text: str, pieces: Sequence[bytes]) -> list[tuple[int, int]]:
    """Where the pieces lie in a text that somebody else decoded from them. Pieces that are not shown in it (special tokens, the
    stop string that was cut off) get no width; damaged bytes, which decoders show differently, are passed over."""
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    result, place = [], 0
    for piece in pieces:
        start = place
        if shown := decoder.decode(piece).replace(DAMAGED, ""):
            while text.startswith(DAMAGED, place):
                place += 1
            if text.startswith(shown, place):
                place += len(shown)
            elif text.startswith(" " + shown, place):  # sentencepiece tokens lose their space when decoded alone
                place += 1 + len(shown)
            elif shown.startswith(text[place:]):
                place = len(text)
        result.append((start, place))
    return result
