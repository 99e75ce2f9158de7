"""`graftlm serve` under load: every greedy reply against that prompt's own result offline, and the speed of both.

    .venv/bin/python bench/serve_load.py --output /tmp/serve_load.json

Many clients (OpenAI's own, asynchronous) send distinct prompts at temperature 0. The peer writes the same prompts, in
the same order and batch size, by plain `model.generate` in a loop; nothing is sorted, and its texts are decoded as
well. It writes half of them before the server starts and half after it has ended, so that a machine that drifts
favours neither; the clients share the machine with the server. Both write one batch before the clock starts.

A reply is identical; or a near tie: where it leaves the offline text, the offline logits of the two tokens are less
than 1e-3 apart, and from there it is the offline text again; or mixed up: another prompt's result; or wrong; or lost.
Exit status 1 if there is any of the last three, or if SIGTERM does not end the server with 0.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple

import torch
from openai import AsyncOpenAI, OpenAIError

from graftlm import load_model
from graftlm.data.load import general_prompts, load_rows
from graftlm.models.decoder import end_tokens
from graftlm.runs.console import reported_progress
from graftlm.runs.provenance import command_line, git_commit, now, versions

NEAR_TIE = 1e-3
SECONDS = 600  # for the server's start and end
KINDS = ("identical", "near tie", "mixed up", "wrong", "lost")
LIBRARIES = ("torch", "transformers", "fastapi", "uvicorn", "openai")


class Reply(NamedTuple):
    seconds: float
    text: str = ""
    tokens: int = 0
    error: str | None = None


class Offline:
    """Plain greedy `model.generate`."""

    def __init__(self, name: str, max_tokens: int) -> None:
        self.model, self.tokenizer = load_model(name)
        self.max_tokens = max_tokens
        self.tokenizer.padding_side = "left"
        self.ends = set(end_tokens(self.model, self.tokenizer))

    def encode(self, prompt: str) -> list[int]:
        return list(self.tokenizer(prompt)["input_ids"])

    def decode(self, ids: list[int]) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)

    @torch.no_grad()
    def write(self, prompts: list[list[int]], max_tokens: int) -> list[list[int]]:
        """New tokens of each prompt of one batch, up to and with the end of sequence."""
        batch = self.tokenizer.pad({"input_ids": prompts}, return_tensors="pt").to(self.model.device)
        pad = self.tokenizer.pad_token_id
        generate: Any = self.model.generate
        written = generate(**batch, max_new_tokens=max_tokens, do_sample=False, pad_token_id=pad)
        return [self.cut(row) for row in written[:, batch["input_ids"].shape[1] :].tolist()]

    def cut(self, ids: list[int]) -> list[int]:
        end = next((place for place, token in enumerate(ids) if token in self.ends), len(ids))
        return ids[: end + 1]

    @torch.no_grad()
    def widest_tie(self, prompt: list[int], own: list[int], text: str, fixed: int = 0) -> float | None:
        """The widest gap of the near ties, after `fixed` tokens of `own`, that turn `own` into `text`; or None."""
        if self.decode(own) == text:
            return 0.0
        ids = torch.tensor([prompt + own], device=self.model.device)
        logits = self.model(ids).logits[0, len(prompt) - 1 : -1].float()
        gaps = (logits - logits.gather(1, ids[0, len(prompt) :, None])).abs()
        for place, token in (gaps < NEAR_TIE).nonzero().tolist():
            start = [*own[:place], token]
            if place < fixed or token == own[place] or not text.startswith(self.decode(start).rstrip("�")):
                continue
            left = 0 if token in self.ends else self.max_tokens - len(start)
            other = start + (self.write([prompt + start], left)[0] if left else [])
            if (rest := self.widest_tie(prompt, other, text, len(start))) is not None:
                return max(gaps[place, token].item(), rest)
        return None


def distinct_prompts(count: int) -> list[str]:
    """General prompts and those of the molecules task in turn; once there are no more general ones, both joined."""
    general, molecules = general_prompts(), list(dict.fromkeys(load_rows("molecules")["prompt"]))
    joined = (f"{general[place % len(general)]}\n\n{prompt}" for place, prompt in enumerate(reversed(molecules)))
    pairs = zip(molecules, itertools.chain(general, joined), strict=False)
    prompts = list(dict.fromkeys(itertools.chain.from_iterable(pairs)))
    if count > len(prompts):
        sys.exit(f"serve_load: --requests is {count}, but there are {len(prompts)} prompts")
    return prompts[:count]


@contextmanager
def serving(
    model: str, *options: str, open_files: int | None = None
) -> Iterator[tuple[subprocess.Popen[bytes], str, IO[bytes]]]:
    """The server's process, its address and its log."""
    command = [sys.executable, "-m", "graftlm", "serve", model, "--port", "0", *options]
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    if open_files is not None:
        command = ["prlimit", f"--nofile={open_files}:{open_files}", *command]
    with tempfile.TemporaryFile() as log, subprocess.Popen(command, stderr=log, env=environment) as server:
        try:
            yield server, wait_for_address(server, log), log
        finally:
            server.kill()


def wait_for_address(server: subprocess.Popen[bytes], log: IO[bytes]) -> str:
    end = time.monotonic() + SECONDS
    while True:
        log.seek(0)
        said = log.read().decode()
        if found := re.search(r"^serving .* at (http://\S+/v1) ", said, re.MULTILINE):
            return found[1]
        if server.poll() is not None or time.monotonic() > end:
            sys.exit(f"serve_load: the server does not start: {said[-1000:]}")
        time.sleep(0.1)


async def ask_all(url: str, prompts: list[str], arguments: argparse.Namespace, report: Any) -> list[Reply]:
    """Each client sends its next prompt when its last one is answered."""
    replies: dict[int, Reply] = {}
    left = iter(enumerate(prompts))
    options: dict[str, Any] = {"model": arguments.model, "max_tokens": arguments.max_tokens, "temperature": 0}

    async def ask() -> None:
        for place, prompt in left:
            begun = time.monotonic()
            try:
                answer = await client.completions.create(prompt=prompt, **options)
                result: dict[str, Any] = {"text": answer.choices[0].text, "tokens": answer.usage.completion_tokens}
            except OpenAIError as error:
                result = {"error": f"{type(error).__name__}: {error}"}
            replies[place] = Reply(time.monotonic() - begun, **result)
            report("server", len(replies), len(prompts))

    async with AsyncOpenAI(base_url=url, api_key="none", max_retries=0, timeout=86400) as client:
        await asyncio.gather(*(ask() for _ in range(arguments.clients)))
    return [replies[place] for place in range(len(prompts))]


def judge(offline: Offline, prompts: list[str], results: list[list[int]], replies: list[Reply]) -> dict[str, Any]:
    """How many replies are of each kind, the gaps of near ties, and the replies that are not as they should be."""
    texts = [offline.decode(ids) for ids in results]
    counts, gaps, failures = Counter(dict.fromkeys(KINDS, 0)), [], []
    for prompt, own, expected, reply in zip(prompts, results, texts, replies, strict=True):
        if reply.error is not None:
            kind = "lost"
        elif reply.text == expected:
            kind = "identical" if reply.tokens == len(own) else "wrong"
        elif (gap := offline.widest_tie(offline.encode(prompt), own, reply.text)) is not None:
            kind = "near tie"
            gaps.append(gap)
        else:
            kind = "mixed up" if reply.text in texts else "wrong"
        counts[kind] += 1
        if kind not in KINDS[:2]:
            failures.append({"kind": kind, "prompt": prompt, "expected": expected, **reply._asdict()})
    return {"replies": counts, "near_tie_gaps": gaps, "failures": failures, "distinct_results": len(set(texts))}


def measure(arguments: argparse.Namespace, report: Any) -> dict[str, Any]:
    prompts = distinct_prompts(arguments.requests)
    size = arguments.max_batch_size
    offline = Offline(arguments.model, arguments.max_tokens)
    results: list[list[int]] = []
    halves = []  # (tokens, seconds)

    def write_until(end: int) -> None:
        offline.write([offline.encode(prompt) for prompt in prompts[:size]], 8)
        begun, done = time.monotonic(), len(results)
        while len(results) < end:
            batch = prompts[len(results) : len(results) + size]
            written = offline.write([offline.encode(prompt) for prompt in batch], arguments.max_tokens)
            [offline.decode(ids) for ids in written]
            results.extend(written)
            report("offline", len(results), len(prompts))
        halves.append((sum(map(len, results[done:])), time.monotonic() - begun))

    write_until(len(prompts) // 2)
    queue = str(max(128, arguments.clients))
    options = ["--request-seconds", "86400", "--max-batch-size", str(arguments.max_batch_size), "--max-queue", queue]
    with serving(arguments.model, *options) as (server, url, _):
        asyncio.run(ask_all(url, prompts[:size], arguments, lambda *_: None))
        begun = time.monotonic()
        replies = asyncio.run(ask_all(url, prompts, arguments, report))
        server_seconds = time.monotonic() - begun
        server.send_signal(signal.SIGTERM)
        status = server.wait(SECONDS)
    write_until(len(prompts))
    served = sum(reply.tokens for reply in replies) / server_seconds
    plain = sum(tokens for tokens, _ in halves) / sum(seconds for _, seconds in halves)
    latencies = sorted(reply.seconds for reply in replies if reply.error is None) or [float("nan")]
    return {
        **judge(offline, prompts, results, replies),
        "sigterm_status": status,
        "server_tokens_per_second": served,
        "offline_tokens_per_second": plain,
        "offline_tokens_per_second_before_and_after": [tokens / seconds for tokens, seconds in halves],
        "server_over_offline": served / plain,
        "latency_seconds": {
            "median": statistics.median(latencies),
            "p95": latencies[int(0.95 * (len(latencies) - 1))],
            "max": latencies[-1],
        },
    }


def print_summary(found: dict[str, Any]) -> None:
    before, after = found["offline_tokens_per_second_before_and_after"]
    latency, ratio = found["latency_seconds"], found["server_over_offline"]
    print(
        f"{found['requests']} requests, {found['clients']} clients, batches of {found['max_batch_size']}, "
        f"up to {found['max_tokens']} tokens; {found['distinct_results']} distinct results"
    )
    counts = ", ".join(f"{count} {kind}" for kind, count in found["replies"].items())
    print(f"replies   {counts}; widest near tie {max(found['near_tie_gaps'], default=0):.1e}")
    speeds = f"server {found['server_tokens_per_second']:.1f}, offline {found['offline_tokens_per_second']:.1f}"
    print(f"tokens/s  {speeds} ({before:.1f} before, {after:.1f} after): {ratio:.2f} ×")
    print(f"latency   median {latency['median']:.2f} s, p95 {latency['p95']:.2f} s, longest {latency['max']:.2f} s")
    print(f"SIGTERM   exit status {found['sigterm_status']}")
    for failure in found["failures"][:5]:
        print(json.dumps(failure, ensure_ascii=False)[:300])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", type=Path, required=True, help="JSON file")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--max-tokens", type=int, default=32, help="of each reply (default: 32)")
    parser.add_argument("--max-batch-size", type=int, default=16, help="of the server and offline (default: 16)")
    parser.add_argument("--threads", type=int, help="of torch, in each of both (default: torch's own)")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    settings = {**vars(arguments), "threads": torch.get_num_threads()}
    del settings["output"]
    origin = {"time": now(), "command": command_line(), "commit": git_commit(), "versions": versions(LIBRARIES)}
    with reported_progress() as report:
        found = {**settings, **origin, **measure(arguments, report)}
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", "utf-8")
    print_summary(found)
    sys.exit(1 if found["failures"] or found["sigterm_status"] else 0)


if __name__ == "__main__":
    main()
