"""The parts that `TransformersEngine` hands to `model.generate`: seeded sampling, stopping, and a cache that grows cheaply.

Shapes: B rows of the running batch, N rows at its start (finished rows leave), T generated tokens, K tracked words, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from transformers import LogitsProcessor, StoppingCriteria
from transformers.cache_utils import DynamicCache, DynamicLayer

from .engine import Request
from .tokens import TokenBytes

SPARE = 128  # tokens of room that a cache layer takes at a time


class RoomyLayer(DynamicLayer):
    """A cache layer with room to spare: the stock layer copies the whole cache for every token that it takes in."""

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any) -> tuple[torch.Tensor, torch.Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        length, new = self.get_seq_length(), key_states.shape[-2]
        if length == 0 or length + new > self.key_room.shape[-2]:
            self._move(self.keys if length else key_states[..., :0, :], self.values if length else value_states[..., :0, :], new)
        self.key_room[..., length : length + new, :] = key_states
        self.value_room[..., length : length + new, :] = value_states
        self.keys, self.values = self.key_room[..., : length + new, :], self.value_room[..., : length + new, :]
        return self.keys, self.values

    def _move(self, keys: torch.Tensor, values: torch.Tensor, new: int = 0) -> None:
        length = keys.shape[-2]
        self.key_room = keys.new_empty(*keys.shape[:-2], length + new + SPARE, keys.shape[-1])
        self.value_room = values.new_empty(*values.shape[:-2], length + new + SPARE, values.shape[-1])
        self.key_room[..., :length, :], self.value_room[..., :length, :] = keys, values
        self.keys, self.values = self.key_room[..., :length, :], self.value_room[..., :length, :]

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        self._move(self.keys[indices], self.values[indices])


def roomy_cache(config: Any) -> DynamicCache | None:
    """An empty cache whose rows can be repeated and dropped; None for models with sliding-window or recurrent layers."""
    cache = DynamicCache(config=config)
    if not cache.layers or any(type(layer) is not DynamicLayer for layer in cache.layers):
        return None
    cache.layers = [RoomyLayer() for _ in cache.layers]
    return cache


def uniforms(seeds: Sequence[int], samples: Sequence[int], length: int) -> np.ndarray:
    """(N, length) numbers in (0, 1), a pure function of seed, sample index and position (splitmix64 as a counter-based hash)."""

    def mix(x: np.ndarray) -> np.ndarray:
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))

    golden = np.uint64(0x9E3779B97F4A7C15)
    with np.errstate(over="ignore"):
        key_N = mix(np.array([seed % 2**64 for seed in seeds], dtype=np.uint64) + golden)
        key_N = mix(key_N + (np.asarray(samples, dtype=np.uint64) + np.uint64(1)) * golden)
        bits_NT = mix(key_N[:, None] + (np.arange(length, dtype=np.uint64) + np.uint64(1)) * golden)
    return ((bits_NT >> np.uint64(40)).astype(np.float32) + 0.5) / 2**24


class Rows:
    """What is known of the N rows of a batch, and which B of them still run."""

    def __init__(self, requests: Sequence[Request], track_ids: Sequence[Sequence[int]], device: torch.device):
        steps, tracked = max(request.max_tokens for request in requests), max(map(len, track_ids))
        self.requests, self.device, self.step = requests, device, 0
        self.alive = torch.arange(len(requests), device=device)
        self.max_tokens = torch.tensor([request.max_tokens for request in requests], device=device)
        self.token_NT = torch.zeros(len(requests), min(steps, SPARE), dtype=torch.long, device=device)
        self.length_N = torch.zeros(len(requests), dtype=torch.long, device=device)
        self.stopped_N = torch.zeros(len(requests), dtype=torch.bool, device=device)
        self.done_B = torch.zeros(len(requests), dtype=torch.bool, device=device)
        self.want_logprobs = any(request.logprobs or request.track for request in requests)
        self.track_NK = torch.tensor([[*ids, *[0] * (tracked - len(ids))] for ids in track_ids], dtype=torch.long, device=device)
        # (1 + K) numbers for a token: its own log-probability, then the tracked words'.
        self.logprob_NTK = torch.zeros(*self.token_NT.shape, 1 + tracked, device=device) if self.want_logprobs else None

    def make_room(self) -> None:
        if self.step == self.token_NT.shape[1]:
            self.token_NT = torch.cat([self.token_NT, torch.zeros_like(self.token_NT)], dim=1)
            if self.logprob_NTK is not None:
                self.logprob_NTK = torch.cat([self.logprob_NTK, torch.zeros_like(self.logprob_NTK)], dim=1)

    def drop_finished(self) -> torch.Tensor:
        """Indices (into the running batch) of the rows that go on."""
        kept = (~self.done_B).nonzero()[:, 0]
        self.alive, self.done_B = self.alive[kept], self.done_B[kept]
        return kept


class SeededSampler(LogitsProcessor):
    """Chooses every row's next token and leaves only that one possible.

    Inverse-CDF sampling from one number per (seed, sample index, position): a row's choices do not depend on its neighbours.
    """

    def __init__(self, rows: Rows, samples: Sequence[int], seeds: Sequence[int], banned: Sequence[int]):
        requests, device = rows.requests, rows.device
        self.rows, self.banned = rows, torch.tensor(list(banned), dtype=torch.long, device=device)
        self.temperature_N = torch.tensor([request.temperature for request in requests], device=device)
        self.top_p_N = torch.tensor([request.top_p for request in requests], device=device)
        self.top_k_N = torch.tensor([request.top_k for request in requests], device=device)
        self.sampled = any(request.temperature > 0 for request in requests)
        self.filtered = any(request.top_p < 1 or request.top_k > 0 for request in requests)
        if self.sampled:
            steps = max(request.max_tokens for request in requests)
            self.noise_NT = torch.from_numpy(uniforms(seeds, samples, steps)).to(device)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        rows = self.rows
        rows.make_room()
        if rows.logprob_NTK is not None:
            raw_BV = torch.log_softmax(scores, dim=-1)
        if len(self.banned):
            scores[:, self.banned] = -torch.inf
        chosen_B = scores.argmax(dim=-1)
        if self.sampled:
            temperature_B = self.temperature_N[rows.alive]
            chosen_B = torch.where(temperature_B > 0, self._sample(scores, temperature_B), chosen_B)
            scores = scores.fill_(-torch.inf).scatter_(1, chosen_B[:, None], 0.0)
        if rows.logprob_NTK is not None:
            wanted_BK = torch.cat([chosen_B[:, None], rows.track_NK[rows.alive]], dim=1)
            rows.logprob_NTK[rows.alive, rows.step] = raw_BV.gather(1, wanted_BK)
        return scores

    def _sample(self, logits_BV: torch.Tensor, temperature_B: torch.Tensor) -> torch.Tensor:
        probs_BV = torch.softmax(logits_BV / temperature_B.clamp_min(1e-6)[:, None], dim=-1)
        if self.filtered:
            probs_BV = _top_k_top_p(probs_BV, self.top_k_N[self.rows.alive], self.top_p_N[self.rows.alive])
        cdf_BV = probs_BV.cumsum(dim=-1)
        total_B = cdf_BV[:, -1]
        # Strictly below the total, so that rounding can never pick a token of probability 0 at the end.
        target_B = torch.minimum(self.noise_NT[self.rows.alive, self.rows.step] * total_B, total_B.nextafter(torch.zeros_like(total_B)))
        return torch.searchsorted(cdf_BV, target_B[:, None], right=True)[:, 0]


def _top_k_top_p(probs_BV: torch.Tensor, top_k_B: torch.Tensor, top_p_B: torch.Tensor) -> torch.Tensor:
    """Zero outside the k likeliest tokens (0 = all), then outside the smallest set that holds top_p of what is left."""
    sorted_BV, order_BV = probs_BV.sort(dim=-1, descending=True)
    rank_V = torch.arange(probs_BV.shape[-1], device=probs_BV.device)
    sorted_BV = sorted_BV.masked_fill((top_k_B[:, None] > 0) & (rank_V >= top_k_B[:, None]), 0.0)
    before_BV = sorted_BV.cumsum(dim=-1) - sorted_BV
    sorted_BV = sorted_BV.masked_fill(before_BV >= top_p_B[:, None] * sorted_BV.sum(dim=-1, keepdim=True), 0.0)
    return torch.zeros_like(probs_BV).scatter_(1, order_BV, sorted_BV)


class Stopper(StoppingCriteria):
    """Marks finished rows (end of turn, stop string, max_tokens), and breaks off once half of the batch is finished so that
    the engine can drop those rows."""

    def __init__(self, rows: Rows, eos_ids: Sequence[int], pieces: TokenBytes, can_drop: bool):
        self.rows, self.pieces, self.can_drop = rows, pieces, can_drop
        self.eos = torch.tensor(list(eos_ids), dtype=torch.long, device=rows.device)
        self.stops = [tuple(word.encode() for word in request.stop) for request in rows.requests]
        self.any_stops = any(self.stops)
        self.tails = [b""] * len(rows.requests)

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        rows, last_B = self.rows, input_ids[:, -1]
        running_B = ~rows.done_B
        rows.token_NT[rows.alive, rows.step] = last_B
        rows.step += 1
        rows.length_N[rows.alive[running_B]] = rows.step
        stopped_B = torch.isin(last_B, self.eos) & running_B
        if self.any_stops:
            self._check_stop_strings(last_B.tolist(), stopped_B)
            stopped_B &= running_B
        rows.stopped_N[rows.alive[stopped_B]] = True
        rows.done_B |= stopped_B | (rows.step >= rows.max_tokens[rows.alive])
        finished = int(rows.done_B.sum())
        if self.can_drop and finished * 2 >= len(rows.done_B):
            return torch.ones_like(rows.done_B)
        return rows.done_B

    def _check_stop_strings(self, last: list[int], stopped_B: torch.Tensor) -> None:
        for place, (row, token) in enumerate(zip(self.rows.alive.tolist(), last, strict=True)):
            if stops := self.stops[row]:
                tail = self.tails[row] + self.pieces[token]
                stopped_B[place] |= any(word in tail for word in stops)
                self.tails[row] = tail[-max(map(len, stops)) :]
