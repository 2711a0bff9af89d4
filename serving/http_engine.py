"""The engine for servers that speak OpenAI's chat protocol: `vllm serve`, or any other, one URL or several.

What only vLLM offers (top_k, the log-probabilities of given token ids) is used where the server says that it is vLLM.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from ..types import EngineError, InputError, Usage
from .engine import Completion, Request, Token, Turn
from .http_client import Client, gather, run
from .images import image_key, to_data_url
from .prompting import CONTEXTS, MARK, TAIL, as_parts, check_images, distinct, drawn, heal, joined, next_id, separator, spread
from .tokens import align
from .turns import place_request, places

KEPT_IMAGES = 256
TOP = 20  # the most log-probabilities a token that OpenAI's protocol and vLLM's default settings allow


class HTTPEngine:
    """An Engine over one or several OpenAI-compatible servers of the same model.

    `base_urls` end in `/v1`; requests go round them in turn, and a failed one is tried again at the next. `model` defaults to
    the server's only model, `api_key` to the environment's VLRM_API_KEY. `timeout` is in seconds for one answer.

    Token ids of tracked words and choices are asked from vLLM's tokenizer. On other servers log-probabilities come from the 20
    likeliest tokens, matched by their text, and a word that is not among them is given the smallest of the 20, an upper
    bound of its own.
    """

    def __init__(
        self,
        base_urls: str | Sequence[str],
        model: str | None = None,
        api_key: str | None = None,
        concurrency: int = 64,
        timeout: float = 600.0,
        retries: int = 5,
        backoff: float = 0.5,
    ):
        urls = [url.rstrip("/") for url in ([base_urls] if isinstance(base_urls, str) else base_urls)]
        if not urls or any(not url.startswith(("http://", "https://")) for url in urls):
            raise InputError(f"a server's URL looks like http://host:port/v1, got {base_urls!r}")
        if concurrency < 1 or retries < 0:
            raise InputError(f"concurrency must be at least 1 and retries at least 0, got {concurrency} and {retries}")
        key = api_key or os.environ.get("VLRM_API_KEY")
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self.client = Client(urls, headers, concurrency, timeout, retries, backoff)
        self.model = model
        self.name = ",".join(urls) + (f"#{model}" if model else "")
        self.usage = Usage()
        self.is_vllm: bool | None = None  # None: not asked yet
        self._lock = threading.Lock()
        self._separator = ""
        self._ids: dict[tuple[str | None, str], int] = {}

    def generate(self, requests: Sequence[Request]) -> list[list[Completion]]:
        """`n` completions for each request, in order."""
        return self._all(self._generate, requests)

    def choice_logprobs(self, requests: Sequence[Request], choices: Sequence[str]) -> list[dict[str, float]]:
        """Log-probability of each choice's first token right after the request's `prefix` (see the class about other servers)."""
        return self._all(lambda request: self._choose(request, tuple(choices)), requests)

    def turn_logprobs(self, requests: Sequence[Request], choices: Sequence[str]) -> list[list[Turn]]:
        """A `Turn` for each place of each request (see `vlrm.serving.turns`): one question a place, as the protocol has no other way.
        A server that caches prefixes reads what the places share once."""
        asked = [[place_request(request, place) for place in places(request)] for request in requests]

        async def ask(request: Request) -> tuple[Turn, Usage]:
            logprobs, usage = await self._choose(request, tuple(choices))
            return Turn(logprobs, usage.prompt_tokens or None), usage

        answers = iter(self._all(ask, [one for group in asked for one in group]))
        return [[next(answers) for _ in group] for group in asked]

    def close(self) -> None:
        """Nothing is held between calls."""

    def _all(self, ask: Callable[[Request], Any], requests: Sequence[Request]) -> list[Any]:
        for request in requests:
            check_images(request)
        if not requests:
            return []
        started = time.perf_counter()

        async def task() -> list[Any]:
            async with self.client:
                if self.is_vllm is None:
                    await self._meet()
                return await gather(ask, requests, self.client.concurrency)

        with self._lock:  # the client's connections belong to one event loop at a time
            self._data_urls: dict[Any, str] = {}
            answers = run(task)
        self.usage = sum((usage for _, usage in answers), self.usage + Usage(seconds=time.perf_counter() - started))
        return [result for result, _ in answers]

    async def _meet(self) -> None:
        """Learns which model to ask for and whether the server is vLLM."""
        url = self.client.urls[0]
        try:
            listed = await self.client.call("GET", "/models")
        except InputError:
            if self.model is None:
                raise
            listed = {"data": [{"id": self.model}]}  # some gateways list no models
        models = listed.get("data") if isinstance(listed, dict) else None
        if not isinstance(models, list) or not all(isinstance(model, dict) and "id" in model for model in models):
            raise EngineError(f"{url}/models gives no list of models: {listed!r:.200}; does the URL end in /v1?")
        names = [model["id"] for model in models]
        if self.model is not None and self.model not in names:
            raise InputError(f"{url} does not serve {self.model!r}, only {', '.join(names[:10])}")
        base = [model["id"] for model in models if not model.get("parent")]  # adapters have their base model as parent
        if self.model is None and len(base) != 1:
            raise InputError(f"{url} serves {', '.join(base[:10]) or 'no model'}; name one: {url}#MODEL")
        self.model = self.model or base[0]
        is_vllm = any(model.get("owned_by") == "vllm" for model in models)
        if is_vllm:
            opened, answered = [
                (await self.client.call("POST", "/../detokenize", {"model": self.model, "tokens": tokens}))["prompt"]
                for tokens in (await self._turn_ids(""), await self._turn_ids(MARK))
            ]
            self._separator = separator(opened, answered)
        self.is_vllm = is_vllm

    async def _generate(self, request: Request) -> tuple[list[Completion], Usage]:
        ids = distinct([await self._word_id(word) for word in request.track], request.track) if self.is_vllm else []
        answer = await self._chat(await asyncio.to_thread(self._body, request, ids))
        usage = _usage(answer)
        completions = []
        for choice in answer["choices"]:
            text = choice["message"].get("content") or ""
            tokens = _tokens(choice, text, request.track, ids) if request.logprobs or request.track else ()
            finish = "length" if choice.get("finish_reason") == "length" else "stop"
            written = len(choice.get("token_ids") or ()) or usage.completion_tokens // len(answer["choices"])
            met = choice.get("stop_reason") if isinstance(choice.get("stop_reason"), str) else "" if self.is_vllm else None
            completions.append(Completion(text, tokens, finish, written, usage.prompt_tokens, met))
        if request.temperature == 0:
            completions = completions[:1] * request.n
        if len(completions) != request.n:
            raise EngineError(
                f"{self.client.urls[0]} gave {len(completions)} completions instead of n={request.n}; ask it for n=1 at a time"
            )
        return completions, usage

    async def _choose(self, request: Request, choices: Sequence[str]) -> tuple[dict[str, float], Usage]:
        prefix, words = heal(request, choices, self._separator)
        ids = distinct([await self._choice_id(prefix, word) for word in words], choices) if self.is_vllm else []
        probe = Request(request.messages, request.images, prefix, max_tokens=1, logprobs=True)
        body = await asyncio.to_thread(self._body, probe, ids)
        answer = await self._chat(body | ({} if ids else {"top_logprobs": TOP}))
        [entry] = _logprobs(answer["choices"][0])[:1] or [{}]
        found = _lookup(entry, words, ids)
        if not ids and len(set(map(id, found))) < len(found):
            raise InputError(f"the server's tokens do not tell the choices {list(choices)} apart; choose words that begin differently")
        return {choice: item["logprob"] for choice, item in zip(choices, found, strict=True)}, _usage(answer)

    def _body(self, request: Request, ids: Sequence[int]) -> dict[str, Any]:
        images = iter(request.images)
        messages = []
        for message in as_parts(request.messages):
            parts = [self._image_part(next(images)) if part["type"] == "image" else part for part in message["content"]]
            plain = len(parts) == 1 and parts[0]["type"] == "text"  # servers without vision know strings only
            messages.append({"role": message["role"], "content": parts[0]["text"] if plain else parts})
        body: dict[str, Any] = {
            "model": self.model,
            "messages": messages,
            "n": drawn(request),
            "max_tokens": request.max_tokens,
            "temperature": request.temperature,
            "top_p": request.top_p,
        }
        if request.seed is not None:
            body["seed"] = spread(request.seed)
        if request.stop:
            body["stop"] = list(request.stop)
        if request.prefix:
            messages.append({"role": "assistant", "content": request.prefix.removeprefix(self._separator)})
            body |= {"add_generation_prompt": False, "continue_final_message": True}
        if request.logprobs or request.track:
            body["logprobs"] = True
        if self.is_vllm:
            # A checkpoint's own sampling defaults must not bend what a request asks for.
            body |= {"top_k": request.top_k, "min_p": 0.0, "repetition_penalty": 1.0, "return_token_ids": True}
            body |= {"return_tokens_as_token_ids": True} if "logprobs" in body else {}
            body |= {"logprob_token_ids": list(ids)} if ids else {}
        elif request.track:
            body["top_logprobs"] = TOP
        return body

    def _image_part(self, image: Any) -> dict[str, Any]:
        """The picture as a data URL; the latest ones are kept, because requests that lie together often share a picture."""
        if (url := self._data_urls.get(key := image_key(image))) is None:
            url = to_data_url(image)
            if len(self._data_urls) < KEPT_IMAGES:
                self._data_urls[key] = url
            else:
                self._data_urls = {key: url}
        return {"type": "image_url", "image_url": {"url": url}}

    async def _chat(self, body: dict[str, Any]) -> dict[str, Any]:
        answer = await self.client.call("POST", "/chat/completions", body)
        choices = answer.get("choices") if isinstance(answer, dict) else None
        if not isinstance(choices, list) or not choices or not all(isinstance(item, dict) and "message" in item for item in choices):
            raise EngineError(f"{self.client.urls[0]} answers something that is not a chat completion: {answer!r:.200}")
        return answer

    async def _word_id(self, word: str) -> int:
        """The id of a word's first token as it stands after other text."""
        if (None, word) not in self._ids:
            for context in CONTEXTS:
                before, after = await self._text_ids(context), await self._text_ids(context + word)
                if (found := next_id(before, after)) is not None:
                    break
            else:
                raise EngineError(f"the server's tokenizer gives no token for the word {word!r}")
            self._ids[None, word] = found
        return self._ids[None, word]

    async def _choice_id(self, prefix: str, choice: str) -> int:
        """The id of a choice's first token after the assistant's `prefix`, whose end is all that tokenizers look at."""
        key = (prefix[-TAIL:], choice)
        if key not in self._ids:
            found = next_id(await self._turn_ids(key[0]), await self._turn_ids(key[0] + choice))
            if found is None:
                raise InputError(joined(choice, key[0]))
            self._ids[key] = found
        return self._ids[key]

    async def _text_ids(self, text: str) -> list[int]:
        body = {"model": self.model, "prompt": text, "add_special_tokens": False}
        return (await self.client.call("POST", "/../tokenize", body))["tokens"]

    async def _turn_ids(self, answer: str) -> list[int]:
        """Token ids of a short chat whose assistant's turn begins with `answer`."""
        turns = [{"role": "user", "content": "x"}]
        if answer:
            turns.append({"role": "assistant", "content": answer.removeprefix(self._separator)})
        body = {"model": self.model, "messages": turns, "add_generation_prompt": not answer, "continue_final_message": bool(answer)}
        return (await self.client.call("POST", "/../tokenize", body))["tokens"]


def _usage(answer: dict[str, Any]) -> Usage:
    counts = answer.get("usage") or {}
    return Usage(counts.get("prompt_tokens") or 0, counts.get("completion_tokens") or 0, len(answer["choices"]))


def _logprobs(choice: dict[str, Any]) -> list[dict[str, Any]]:
    content = (choice.get("logprobs") or {}).get("content")
    if content is None:
        raise EngineError("the server returned no log-probabilities; use a server that supports logprobs (vLLM does)")
    return content


def _tokens(choice: dict[str, Any], text: str, words: Sequence[str], ids: Sequence[int]) -> tuple[Token, ...]:
    content = _logprobs(choice)
    pieces = [bytes(entry["bytes"]) if entry.get("bytes") is not None else entry["token"].encode() for entry in content]
    result = []
    for entry, (start, end) in zip(content, align(text, pieces), strict=True):
        tracked = {word: item["logprob"] for word, item in zip(words, _lookup(entry, words, ids), strict=True)}
        name = entry["token"]
        id = int(name.removeprefix("token_id:")) if name.startswith("token_id:") else -1
        result.append(Token(id, start, end, entry["logprob"], tracked))
    return tuple(result)


def _lookup(entry: dict[str, Any], words: Sequence[str], ids: Sequence[int]) -> list[dict[str, Any]]:
    """For each word, the entry of its first token: by id where ids are known, else the longest token that the word begins with."""
    listed = entry.get("top_logprobs") or []
    if ids:
        by_name = {item["token"]: item for item in [entry, *listed]}
        return [by_name[f"token_id:{id}"] for id in ids]
    if words and not listed:
        raise EngineError("the server returned no top_logprobs; use a server that supports them (vLLM does)")
    found = []
    for word in words:
        fits = [item for item in listed if item["token"] and word.startswith(item["token"])]
        found.append(max(fits, key=lambda item: len(item["token"])) if fits else dict(min(listed, key=lambda item: item["logprob"])))
    return found
