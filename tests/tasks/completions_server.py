"""A server with OpenAI's API and a mini checkpoint behind it: text completions with log-probabilities, chat completions."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import torch

END = "<|endoftext|>"


class Completions:
    """What the endpoints compute. requests: the payloads that were received, in order."""

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self.model, self.tokenizer = model, tokenizer
        self.requests: list[dict[str, Any]] = []

    def text(self, payload: dict[str, Any]) -> dict[str, Any]:
        prompts = payload["prompt"]
        if isinstance(prompts, str) or isinstance(prompts[0], int):
            prompts = [prompts]
        ids = [self.tokenizer.encode(prompt) if isinstance(prompt, str) else prompt for prompt in prompts]
        if payload.get("echo"):
            return {"choices": [{"index": i, "logprobs": self._logprobs(row)} for i, row in enumerate(ids)]}
        return {"choices": [{"index": i, "text": text} for i, text in enumerate(self._generate(ids, payload))]}

    def chat(self, payload: dict[str, Any]) -> dict[str, Any]:
        """The minis know no turns: the last message is the prompt."""
        (text,) = self._generate([self.tokenizer.encode(payload["messages"][-1]["content"])], payload)
        return {"choices": [{"index": 0, "message": {"role": "assistant", "content": text}}]}

    def _generate(self, ids: list[list[int]], payload: dict[str, Any]) -> list[str]:
        limit = payload.get("max_tokens") or payload["max_completion_tokens"]
        with torch.inference_mode():
            rows = self.model.continue_prompts(
                ids, limit, sampling={}, stop_ids=[], stop_test=None, short_prompt="left_pad"
            )
        texts = [self.tokenizer.decode(row) for row in rows]
        for stop in [END, *payload["stop"]]:
            texts = [text.split(stop)[0] for text in texts]
        return texts

    def _logprobs(self, ids: list[int]) -> dict[str, Any]:
        """Of the tokens that were sent, and of one more: the most likely one."""
        with torch.inference_mode():
            logps = self.model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
        best = logps.max(-1).values.tolist()
        own = [None, *(logps[i, token].item() for i, token in enumerate(ids[1:])), best[-1]]
        return {"token_logprobs": own, "top_logprobs": [None, *({"best": value} for value in best)]}


@contextmanager
def serving(completions: Completions) -> Iterator[str]:
    """The address of a running server."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            payload = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            completions.requests.append(payload)
            answer = completions.chat(payload) if "chat" in self.path else completions.text(payload)
            body = json.dumps(answer).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_GET(self) -> None:
            self.send_error(404)

        def log_message(self, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
