"""How much a text repeats itself. Standard library only."""

from __future__ import annotations


def repeated_ngrams(text: str, n: int = 20) -> float:
    """1 - distinct / all of the text's word n-grams, in [0, 1); 0 for a text of fewer than n words."""
    words = text.split()
    grams = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
    return 1.0 - len(set(grams)) / len(grams) if grams else 0.0
