"""The engine that runs anywhere: any image-text-to-text model of transformers, batched, seeded, with log-probabilities.

Generation is `model.generate`; what is added is around it: prompts of a batch are read once and their key-value cache is
repeated for the n samples, rows that have finished leave the batch, and sampling is a pure function of the request's seed.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..types import EngineError, InputError, Usage
from .engine import Completion, Request, Token, Turn
from .images import open_images
from .prompting import Prompter, drawn, heal
from .tokens import TokenBytes
from .turns import Unreadable, explain, read_at_once, turn_by_turn


class TransformersEngine:
    """An Engine over `AutoModelForImageTextToText`.

    `path` is a folder or a hub name, `adapter` a LoRA folder (merged into the weights), `device` "cpu", "cuda", ... (default: the
    GPU if there is one). `dtype` is "float32" (the default on a CPU), "bfloat16", "float16", "auto" (the checkpoint's own, the
    default elsewhere) or "fast" (bfloat16 where the hardware computes it natively, else float32: on CPUs with AMX twice as
    fast, and rounded more coarsely). At most `batch_size` sequences run at a time (default: by the model's size), and fewer
    where their prompts and answers could come to more than `max_batch_tokens`. One call at a time: not thread-safe.
    """

    def __init__(
        self,
        path: str | Path,
        adapter: str | Path | None = None,
        device: str | None = None,
        dtype: str | None = None,
        batch_size: int | None = None,
        max_batch_tokens: int | None = None,
        trust_remote_code: bool = False,
    ):
        import torch
        from transformers import AutoProcessor, GenerationConfig

        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        if dtype == "fast":
            dtype = "bfloat16" if _native_bfloat16(self.device) else "float32"
        if dtype is None:
            dtype = "float32" if self.device.type == "cpu" else "auto"
        if dtype != "auto" and not isinstance(getattr(torch, dtype, None), torch.dtype):
            raise InputError(f"dtype must be float32, bfloat16, float16, auto or fast, got {dtype!r}")
        try:
            processor = AutoProcessor.from_pretrained(path, trust_remote_code=trust_remote_code)
            model = self._load(path, dtype=dtype, trust_remote_code=trust_remote_code)
        except (OSError, ValueError, ImportError, KeyError) as error:
            raise InputError(f"transformers cannot load an image-text-to-text model from {path}: {_first_line(error)}") from error
        if adapter is not None:
            model = _with_adapter(model, adapter)
        self.model = model.to(self.device).eval()
        self.prompter = Prompter(processor, str(path))
        self.tokenizer = self.prompter.tokenizer
        self.tokenizer.padding_side = "left"
        self.pieces = TokenBytes(self.tokenizer)
        eos = model.generation_config.eos_token_id
        self.eos_ids = sorted({self.tokenizer.eos_token_id, *(eos if isinstance(eos, list) else [eos])} - {None})
        known = (self.tokenizer.pad_token_id, model.generation_config.pad_token_id, *self.eos_ids, 0)
        self.pad_id = next(id for id in known if id is not None)
        if self.tokenizer.pad_token_id is None:
            self.tokenizer.pad_token = self.tokenizer.convert_ids_to_tokens(self.pad_id)
        # A checkpoint's own sampling defaults (repetition penalty, temperature) must not bend what a request asks for.
        model.generation_config = GenerationConfig(pad_token_id=self.pad_id, eos_token_id=self.eos_ids)
        names = ("image_token_id", "image_token_index", "video_token_id")
        self.banned_ids = sorted({id for name in names if isinstance(id := getattr(model.config, name, None), int)})
        size = sum(parameter.numel() for parameter in model.parameters())
        self.batch_size = batch_size or default_batch_size(size, self.device.type)
        self.max_batch_tokens = max_batch_tokens or 1024 * self.batch_size
        self.name = f"transformers:{path}" + (f"+{adapter}" if adapter else "")
        self.usage = Usage()

    @staticmethod
    def _load(path: str | Path, **options: Any) -> Any:
        from transformers import AutoModelForImageTextToText

        return AutoModelForImageTextToText.from_pretrained(path, **options)

    def generate(self, requests: Sequence[Request]) -> list[list[Completion]]:
        """`n` completions for each request, in order."""
        if not requests:
            return []
        started = time.perf_counter()
        texts = [self.prompter.text(request) for request in requests]
        results: list[list[Completion | None]] = [[None] * drawn(request) for request in requests]
        seeds = [secrets.randbits(62) if request.seed is None else request.seed for request in requests]
        prompt_tokens = [0] * len(requests)
        with self._enough_memory():
            for batch in self._batches(requests, texts):
                self._generate_batch(requests, texts, seeds, batch, results, prompt_tokens)
        written = sum(completion.completion_tokens for group in results for completion in group)
        self.usage += Usage(sum(prompt_tokens), written, sum(map(len, results)), time.perf_counter() - started)
        return [group * (request.n // len(group)) for request, group in zip(requests, results, strict=True)]

    def choice_logprobs(self, requests: Sequence[Request], choices: Sequence[str]) -> list[dict[str, float]]:
        """Log-probability of each choice's first token right after the request's `prefix`, of the whole vocabulary's softmax."""
        if not requests:
            return []
        started = time.perf_counter()
        healed = [heal(request, choices, self.prompter.separator) for request in requests]
        requests = [replace(request, prefix=prefix, n=1, max_tokens=1) for request, (prefix, _) in zip(requests, healed, strict=True)]
        texts = [self.prompter.text(request) for request in requests]
        choice_ids = [self.prompter.choice_ids(text, words) for text, (_, words) in zip(texts, healed, strict=True)]
        results: list[dict[str, float]] = [{} for _ in requests]
        prompt_tokens = 0
        for batch in self._batches(requests, texts):
            order = [index for index, _ in batch]
            inputs = self._inputs([texts[index] for index in order], [requests[index] for index in order])
            with self._enough_memory():
                logprobs_BV = self._next_logprobs(inputs)
            for row, index in enumerate(order):
                values = logprobs_BV[row, choice_ids[index]].tolist()
                results[index] = dict(zip(choices, values, strict=True))
            prompt_tokens += int(inputs["attention_mask"].sum())
        self.usage += Usage(prompt_tokens, len(requests), len(requests), time.perf_counter() - started)
        return results

    def turn_logprobs(self, requests: Sequence[Request], choices: Sequence[str]) -> list[list[Turn]]:
        """A `Turn` for each place of each request (see `vlrm.serving.turns`), from one forward pass over its whole chat."""
        if not requests:
            return []
        started = time.perf_counter()
        try:
            results = read_at_once(self, requests, choices)
        except Unreadable as reason:
            explain(self, str(reason))
            return turn_by_turn(self, requests, choices)
        self.usage += Usage(sum(turns[-1].tokens for turns in results), 0, len(requests), time.perf_counter() - started)
        return results

    def close(self) -> None:
        """Gives the model's memory back; the engine cannot be used afterwards."""
        self.model = None

    @contextmanager
    def _enough_memory(self) -> Iterator[None]:
        import torch

        try:
            yield
        except torch.OutOfMemoryError as error:
            raise EngineError(
                f"{self.name} ran out of GPU memory; give a batch_size below {self.batch_size} or a smaller max_tokens"
            ) from error

    def _batches(self, requests: Sequence[Request], texts: Sequence[str]) -> list[list[tuple[int, int]]]:
        """Lists of (request, sample) rows: prompts of like length together, the samples of a request side by side."""
        order = sorted(range(len(requests)), key=lambda i: (requests[i].max_tokens, len(requests[i].images), len(texts[i])), reverse=True)
        batches: list[list[tuple[int, int]]] = [[]]
        for index in order:
            # About three characters a token; an image's tokens are not known before it is read.
            tokens = len(texts[index]) // 3 + 64 * len(requests[index].images) + requests[index].max_tokens
            limit = max(1, min(self.batch_size, self.max_batch_tokens // tokens))
            for sample in range(drawn(requests[index])):
                if len(batches[-1]) >= limit:
                    batches.append([])
                batches[-1].append((index, sample))
        return batches

    def _inputs(self, texts: Sequence[str], requests: Sequence[Request], **more: Any) -> dict[str, Any]:
        """The processor's tensors for a batch, left-padded unless `more` says otherwise."""
        images = open_images([request.images for request in requests])
        options: dict[str, Any] = {"padding": True, "return_tensors": "pt", "add_special_tokens": False, **more}
        if any(images):
            options["images"] = images
        if self.device.type == "cpu" and self.model.dtype.itemsize < 4:
            # A row's rounding depends on where it lies in the attention kernel's blocks: keep that the same in every batch.
            options["pad_to_multiple_of"] = 32
        try:
            inputs = self.prompter.processor(text=list(texts), **options)
        except ValueError as error:
            raise InputError(f"the model's processor refuses the prompt: {_first_line(error)}") from error
        longest = int(inputs["attention_mask"].sum(dim=1).max())
        limit = getattr(self.model.config.get_text_config(), "max_position_embeddings", None) or longest
        if longest > limit:
            raise InputError(f"the prompt has {longest:,} tokens, more than the {limit:,} that {self.name} can read; give a shorter one")
        return dict(inputs.to(self.device))

    def _next_logprobs(self, inputs: dict[str, Any]) -> Any:
        """(B, V) log-probabilities of the token after each prompt."""
        import torch

        seen = []

        def record(input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            seen.append(torch.log_softmax(scores.float(), dim=-1))
            return scores

        with torch.inference_mode():
            self.model.generate(**inputs, max_new_tokens=1, do_sample=False, logits_processor=[record])
        return seen[0]

    def _generate_batch(
        self,
        requests: Sequence[Request],
        texts: Sequence[str],
        seeds: Sequence[int],
        batch: Sequence[tuple[int, int]],
        results: list[list[Completion | None]],
        prompt_tokens: list[int],
    ) -> None:
        import torch

        from .decoding import Rows, SeededSampler, Stopper

        owners = [index for index, _ in batch]
        row_requests = [requests[index] for index in owners]
        tracked = {words: self.prompter.track_ids(words) for words in {request.track for request in row_requests}}
        rows = Rows(row_requests, [tracked[request.track] for request in row_requests], self.device)
        sampler = SeededSampler(rows, [sample for _, sample in batch], [seeds[index] for index in owners], self.banned_ids)
        with torch.inference_mode():
            ids, mask, cache, extra = self._read_prompts(requests, texts, owners)
            for row, index in enumerate(owners):
                prompt_tokens[index] = int(mask[row].sum())
            stopper = Stopper(rows, self.eos_ids, self.pieces, can_drop=cache is not None)
            while True:
                left = int(rows.max_tokens[rows.alive].max()) - rows.step
                sequences = self.model.generate(
                    input_ids=ids,
                    attention_mask=mask,
                    past_key_values=cache,
                    max_new_tokens=left,
                    do_sample=False,
                    logits_processor=[sampler],
                    stopping_criteria=[stopper],
                    **extra,
                )
                kept = rows.drop_finished()
                if len(kept) == 0:
                    break
                mask = torch.nn.functional.pad(mask, (0, sequences.shape[1] - mask.shape[1]), value=1)[kept]
                ids, extra = sequences[kept], {}
                self._keep_rows(cache, kept)
        self._collect(rows, batch, results, prompt_tokens)

    def _read_prompts(
        self, requests: Sequence[Request], texts: Sequence[str], owners: Sequence[int]
    ) -> tuple[Any, Any, Any, dict[str, Any]]:
        """Input ids, mask and filled cache for one row per owner; every distinct prompt goes through the model once.

        For models whose cache cannot be repeated (sliding windows, recurrent layers) the cache is None, each row has its own
        prompt, and the last result holds its images.
        """
        import torch

        from .decoding import roomy_cache

        cache = roomy_cache(self.model.config)
        distinct = list(owners) if cache is None else list(dict.fromkeys(owners))
        inputs = self._inputs([texts[index] for index in distinct], [requests[index] for index in distinct])
        if cache is None:
            return inputs.pop("input_ids"), inputs.pop("attention_mask"), None, inputs
        self.model.generate(**inputs, past_key_values=cache, max_new_tokens=1, do_sample=False)
        # `generate` goes on from a cache only if a token is left to read: the prompt's last one is read again.
        cache.crop(inputs["input_ids"].shape[1] - 1 - cache.get_seq_length())
        place = {index: row for row, index in enumerate(distinct)}
        repeat = torch.tensor([place[index] for index in owners], device=self.device)
        self._keep_rows(cache, repeat)
        return inputs["input_ids"][repeat], inputs["attention_mask"][repeat], cache, {}

    def _keep_rows(self, cache: Any, indices: Any) -> None:
        cache.batch_select_indices(indices)
        # Qwen-VL models keep each row's rotary offset on the model between calls.
        if (deltas := getattr(self.model.base_model, "rope_deltas", None)) is not None:
            self.model.base_model.rope_deltas = deltas[indices]

    def _collect(
        self,
        rows: Any,
        batch: Sequence[tuple[int, int]],
        results: list[list[Completion | None]],
        prompt_tokens: Sequence[int],
    ) -> None:
        tokens, lengths, stopped = rows.token_NT.tolist(), rows.length_N.tolist(), rows.stopped_N.tolist()
        logprobs = rows.logprob_NTK.tolist() if rows.want_logprobs else None
        for row, (index, sample) in enumerate(batch):
            request, ids = rows.requests[row], tokens[row][: lengths[row]]
            text, spans, cut = self.pieces.decode(ids, request.stop)
            details: list[Token] = []
            if request.logprobs or request.track:
                for id, (start, end), (own, *others) in zip(ids, spans, logprobs[row][: len(ids)], strict=True):
                    details.append(Token(id, start, end, own, dict(zip(request.track, others, strict=False))))
            finish = "stop" if stopped[row] or cut else "length"
            met = self.pieces.stopped_at(ids, text, request.stop) if cut else ""
            results[index][sample] = Completion(text, tuple(details), finish, len(ids), prompt_tokens[index], met)


def default_batch_size(parameters: int, device: str) -> int:
    """Sequences at a time: as many as keep the arithmetic busy without filling the memory of a common machine."""
    if parameters < 50_000_000:
        return 256
    if parameters < 1_000_000_000:
        return 32 if device == "cpu" else 128
    return 8 if device == "cpu" else 32


def _native_bfloat16(device: Any) -> bool:
    import torch

    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    checks = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
    return device.type == "cpu" and any(getattr(torch.cpu, check, bool)() for check in checks)


def _with_adapter(model: Any, adapter: str | Path) -> Any:
    from peft import PeftModel

    try:
        return PeftModel.from_pretrained(model, str(adapter)).merge_and_unload()
    except (OSError, ValueError, RuntimeError) as error:
        raise InputError(f"adapter {adapter} does not fit the model: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
