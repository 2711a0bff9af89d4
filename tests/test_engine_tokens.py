"""Bytes, characters and ids of tokens, the hash behind the samples, the cache that grows: the engines' small exact parts."""

from __future__ import annotations

import numpy as np
import pytest

from vlrm.serving.prompting import distinct, heal, next_id, separator, spread
from vlrm.serving.tokens import TokenBytes, align, spans
from vlrm.types import InputError


@pytest.fixture(scope="module")
def tokenizer():
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer, bpe.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    bpe.train_from_iterator(["a word after a word"], trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False))
    bpe.add_special_tokens(["<|end|>"])
    bpe.add_tokens(["<box 1>"])
    return PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<|end|>", clean_up_tokenization_spaces=False)


@pytest.mark.parametrize("text", ["a word", "naïve 漢字 🙂🙂 é\n\n x", "<box 1> and <|end|>after", "", " lead", "\t😀"])
def test_byte_level_text_and_offsets(tokenizer, text):
    ids = tokenizer.encode(text, add_special_tokens=False)
    decoded, ends, _ = TokenBytes(tokenizer).decode(ids)
    assert decoded == tokenizer.decode(ids, skip_special_tokens=True) == text.replace("<|end|>", "")
    assert [start for start, _ in ends] == [0, *[end for _, end in ends[:-1]]][: len(ends)]
    for i in range(len(ids)):  # the text that is complete after token i
        assert decoded[: ends[i][1]] == tokenizer.decode(ids[: i + 1], skip_special_tokens=True).rstrip("\ufffd")


def test_random_ids_decode_as_the_tokenizer_does(tokenizer):
    rng = np.random.default_rng(0)
    pieces = TokenBytes(tokenizer)
    for _ in range(200):
        ids = rng.integers(0, len(tokenizer), 12).tolist()
        text, ends, _ = pieces.decode(ids)
        assert text.rstrip("\ufffd") == tokenizer.decode(ids, skip_special_tokens=True).rstrip("\ufffd")
        assert ends[-1][1] == len(text)


def test_sentencepiece_pieces():
    from tokenizers import Tokenizer, decoders, models
    from transformers import PreTrainedTokenizerFast

    vocabulary = [("<unk>", 0.0), ("\u2581Hello", -1.0), ("<0xC3>", -2.0), ("<0xA9>", -2.0), ("\u2581", -3.0)]
    model = Tokenizer(models.Unigram(vocabulary, unk_id=0, byte_fallback=True))
    model.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])
    pieces = TokenBytes(PreTrainedTokenizerFast(tokenizer_object=model, unk_token="<unk>"))
    assert pieces.decode([1, 2, 3, 4, 0]) == (" Helloé ", [(0, 6), (6, 6), (6, 7), (7, 8), (8, 8)], False)


def test_stop_strings_end_the_text(tokenizer):
    ids = tokenizer.encode("a word after a word")
    text, ends, stopped = TokenBytes(tokenizer).decode(ids, ("zzz", "ter", "fter"))
    assert text == "a word a" and stopped and max(end for _, end in ends) == 8
    assert len(ends) == len(ids)


def test_spans_of_spread_characters():
    assert spans(["é".encode()[:1], "é".encode()[1:] + b"x", b""]) == ("éx", [(0, 0), (0, 2), (2, 2)])
    assert spans([b"a", "漢".encode()[:2]]) == ("a", [(0, 1), (1, 1)]), "an unfinished character is left out"
    assert spans([b"\xff", b"b"]) == ("\ufffdb", [(0, 1), (1, 2)])


def test_align():
    assert align("a é b", [b"a", b" \xc3", b"\xa9", b"<|end|>", b" b"]) == [(0, 1), (1, 2), (2, 3), (3, 3), (3, 5)]
    assert align("ab", [b"a", b"b.", b"cut"]) == [(0, 1), (1, 2), (2, 2)]
    assert align("a b", [b"a", b"b"]) == [(0, 1), (1, 3)], "a piece that lost its space"
    assert align("a\ufffd\ufffdb", [b"a", b"", b"\xff", b"b"])[-1] == (1, 4), "damaged bytes are passed over"


def test_ids_and_prefixes(ask):
    assert next_id([1, 2], [1, 2, 3]) == 3 and next_id([1, 2], [1, 3]) is None and next_id([1], [1]) is None
    assert distinct([1, 2], ["a", "b"]) == [1, 2]
    with pytest.raises(InputError, match="'a' and 'c'"):
        distinct([1, 2, 1], ["a", "b", "c"])
    assert heal(ask(prefix="Verdict:  "), ["A", "B"]) == ("Verdict:", ["  A", "  B"])
    assert separator("User:x Assistant:", "User:x Assistant: vlrm-mark<end>") == " "
    assert separator("<u>x<a><think>", "<u>x<a>vlrm-mark") == "", "a generation prompt that the answer does not repeat"
    assert len({spread(seed) for seed in range(-50, 1000)}) == 1050 and all(0 <= spread(seed) < 2**31 for seed in (-1, 0, 2**80))


def test_uniforms_are_even_and_keyed():
    pytest.importorskip("torch")
    from vlrm.serving.decoding import uniforms

    numbers = uniforms(range(50), [0] * 50, 400)
    assert numbers.shape == (50, 400) and numbers.min() > 0 and numbers.max() < 1
    assert abs(numbers.mean() - 0.5) < 0.01 and abs(numbers.std() - 12**-0.5) < 0.01
    counts = np.histogram(numbers, bins=20, range=(0, 1))[0]
    assert ((counts - 1000) ** 2 / 1000).sum() < 45  # chi-square, 19 degrees of freedom
    assert len(np.unique(np.concatenate([uniforms([seed], [sample], 8)[0] for seed in range(20) for sample in range(20)]))) > 3190
    assert np.array_equal(uniforms([7, 7], [0, 3], 5)[1], uniforms([7], [3], 9)[0][:5])
    assert np.abs(np.corrcoef(uniforms([1, 2], [1, 0], 4000))[0, 1]) < 0.06
    assert not np.array_equal(uniforms([1], [0], 4), uniforms([-1], [0], 4))


def test_roomy_layer_holds_what_the_stock_layer_holds():
    torch = pytest.importorskip("torch")
    from transformers.cache_utils import DynamicLayer

    from vlrm.serving.decoding import RoomyLayer

    ours, stock = RoomyLayer(), DynamicLayer()
    for step, length in enumerate([5, 1, 1, 200, 1]):
        new = torch.randn(2, 4, 3, length, 8) if step < 3 else torch.randn(2, 3, 3, length, 8)
        for layer in (ours, stock):
            keys, values = layer.update(new[0], new[1])
        assert torch.equal(ours.keys, keys) and torch.equal(ours.values, values) and ours.get_seq_length() == stock.get_seq_length()
        if step == 1:
            for layer in (ours, stock):
                layer.crop(-1)
        if step == 2:
            for layer in (ours, stock):
                layer.batch_select_indices(torch.tensor([3, 0, 0]))
    assert torch.equal(ours.keys, stock.keys)
