"""`graftlm serve` under load and abuse at once: every reply against its own result offline, and /health throughout.

    .venv/bin/python bench/serve_abuse.py --output bench/results/serve_abuse.json

64 clients (OpenAI's own, asynchronous) send 1,000 distinct requests of all kinds: completions and chats, whole and
streamed, greedy and sampled with seeds, with log-probabilities, stop texts and several choices. One process meanwhile
does what bench/abusers.py has, over and over, and another asks for /health on a new connection ten times a second.
The model is tiny and random, so that the server's own work is what is measured; it writes a character a token.

The result offline is a plain loop over the model, one sequence at a time. A reply is identical; or a near tie: it
leaves the offline text where the two likeliest (or, sampled, the two fastest) are less than 1e-3 apart; or mixed up:
another request's text; or wrong; or lost. Exit status 1 for any of the last three, for a status that is not the right
one for an abuse, and where /health took more than a second.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import torch
from openai import AsyncOpenAI, OpenAIError
from serve_load import LIBRARIES, NEAR_TIE, serving
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from graftlm.runs.console import reported_progress
from graftlm.runs.provenance import command_line, git_commit, now, versions
from graftlm.serve.sampling import sample
from graftlm.serve.sequence import seeded_generator

KINDS = ("identical", "near tie", "mixed up", "wrong", "lost")
OPEN_FILES = 1024  # the server's limit
HEALTH_SECONDS = 1.0
WORDS = (
    "root",
    "graft",
    "scion",
    "bark",
    "sap",
    "leaf",
    "bud",
    "node",
    "stem",
    "wood",
    "ring",
    "seed",
    "fruit",
    "vine",
)


def save_model(folder: str) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """A random model that writes printable ASCII, a character a token."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={letter: place for place, letter in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>", pad_token="<pad>")
    tokenizer.chat_template = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}[assistant]"
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = LlamaConfig(vocab_size=258, max_position_embeddings=2048, initializer_range=0.1, **sizes)
    model = LlamaForCausalLM(config).float().eval()
    allowed = {place for place in range(256) if 32 <= ord(tokenizer.decode([place])) < 127}
    model.generation_config.suppress_tokens = [place for place in range(258) if place not in allowed]
    model.generation_config.eos_token_id = 256
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model, tokenizer


def mixed_requests(count: int) -> list[dict[str, Any]]:
    """Each with a text of its own, the kinds in turn."""
    draw = random.Random(0)
    requests = []
    for number in range(count):
        text = f"{number} " + " ".join(draw.choice(WORDS) for _ in range(draw.randrange(2, 30)))
        request: dict[str, Any] = {"max_tokens": draw.randrange(8, 33), "temperature": 0}
        if number % 2:
            request |= {"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": text}]}
        else:
            request |= {"prompt": text}
        if number // 2 % 2:
            request |= {"stream": True}
        if number // 4 % 2:
            request |= {"temperature": draw.choice([0.5, 1.0, 1.5]), "top_p": draw.choice([0.7, 1.0]), "seed": number}
        if number % 3 == 0:
            request |= {"logprobs": True, "top_logprobs": 2} if number % 2 else {"logprobs": 2}
        if number % 5 == 0:
            request |= {"stop": [f"{first}{second}" for first, second in zip("abcdef", "ghijkl", strict=True)]}
        if number % 7 == 0:
            request |= {"n": 2}
        requests.append(request)
    return requests


class Offline:
    """One sequence at a time, a token at a time."""

    def __init__(self, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
        self.model, self.tokenizer = model, tokenizer
        self.barred = torch.tensor(model.generation_config.suppress_tokens)

    def encode(self, request: dict[str, Any]) -> list[int]:
        if "prompt" in request:
            return list(self.tokenizer(request["prompt"])["input_ids"])
        encoded: Any = self.tokenizer.apply_chat_template(
            request["messages"], add_generation_prompt=True, return_dict=True
        )
        return list(encoded["input_ids"])

    @torch.no_grad()
    def write(self, request: dict[str, Any], choice: int) -> dict[str, Any]:
        """The text of a choice, the log-probabilities of its tokens and how near the second token was to each."""
        ids, text, logprobs, gaps = torch.tensor([self.encode(request)]), "", [], []
        generator, cache, new = seeded_generator(request.get("seed"), choice), None, ids
        for _ in range(request["max_tokens"]):
            output = self.model(new, past_key_values=cache, use_cache=True)
            cache, logits = output.past_key_values, output.logits[:, -1].index_fill(1, self.barred, -torch.inf)
            token, gap = self.choose(logits, request, generator)
            text += self.tokenizer.decode([token])
            logprobs.append(logits.log_softmax(-1)[0, token].item())
            gaps.append(gap)
            new = torch.tensor([[token]])
            if ends := [at for stop in request.get("stop", ()) if (at := text.find(stop)) >= 0]:
                return {"text": text[: min(ends)], "logprobs": logprobs[: min(ends)], "gaps": gaps}
        return {"text": text, "logprobs": logprobs, "gaps": gaps}

    def choose(self, logits: torch.Tensor, request: dict[str, Any], generator: torch.Generator) -> tuple[int, float]:
        if not request["temperature"]:
            first, second = logits[0].topk(2).values.tolist()
            return int(logits.argmax()), first - second
        race = torch.empty_like(logits).exponential_(generator=generator)
        settings = torch.tensor([request["temperature"]]), torch.tensor([request["top_p"]])
        times = logits / request["temperature"] - race.log()
        first, second = times[0].topk(2).values.tolist()
        return int(sample(logits, *settings, race)), first - second


async def ask(client: AsyncOpenAI, request: dict[str, Any]) -> list[dict[str, Any]]:
    """The text and log-probabilities of each choice."""
    create: Any = client.chat.completions.create if "messages" in request else client.completions.create
    choices: list[dict[str, Any]] = [{"text": "", "logprobs": [], "end": None} for _ in range(request.get("n", 1))]

    def add(given: Any, text: str | None) -> None:
        choice = choices[given.index]
        choice["text"] += text or ""
        choice["end"] = given.finish_reason
        if given.logprobs is not None:
            content = getattr(given.logprobs, "content", None)
            values = given.logprobs.token_logprobs if content is None else [entry.logprob for entry in content]
            choice["logprobs"] += values

    answer = await create(**request)
    if not request.get("stream"):
        for each in answer.choices:
            add(each, each.message.content if "messages" in request else each.text)
        return choices
    async for chunk in answer:
        for each in chunk.choices:
            add(each, each.delta.content if "messages" in request else each.text)
    return choices


async def ask_all(url: str, requests: list[dict[str, Any]], clients: int, report: Any) -> list[Any]:
    """Each client sends its next request when its last one is answered; an error in the place of a lost reply."""
    replies: dict[int, Any] = {}
    left = iter(enumerate(requests))

    async def work(client: AsyncOpenAI) -> None:
        for place, request in left:
            begun = time.monotonic()
            try:
                replies[place] = await ask(client, request)
            except OpenAIError as error:
                replies[place] = f"{type(error).__name__}: {error}"
            seconds.append(time.monotonic() - begun)
            report("requests", len(replies), len(requests))

    seconds: list[float] = []
    async with AsyncOpenAI(base_url=url, api_key="none", max_retries=0, timeout=600) as client:
        await asyncio.gather(*(work(client) for _ in range(clients)))
    return [replies[place] for place in range(len(requests))]


def judge(request: dict[str, Any], reply: Any, expected: list[dict[str, Any]], others: Counter[str]) -> str:
    if isinstance(reply, str):
        return "lost"
    kinds = [judge_choice(request, *pair, others) for pair in zip(reply, expected, strict=True)]
    return max(kinds, key=KINDS.index)


def judge_choice(request: dict[str, Any], own: dict[str, Any], expected: dict[str, Any], others: Counter[str]) -> str:
    if own["text"] == expected["text"]:
        wanted = expected["logprobs"] if request.get("logprobs") else []
        same = len(own["logprobs"]) == len(wanted) and own["end"] in ("stop", "length")
        close = same and all(abs(one - two) < 1e-3 for one, two in zip(own["logprobs"], wanted, strict=True))
        return "identical" if close else "wrong"
    pairs = enumerate(zip(own["text"], expected["text"], strict=False))
    place = next((place for place, (one, two) in pairs if one != two), None)
    if place is not None and expected["gaps"][place] < NEAR_TIE:
        return "near tie"
    return "mixed up" if others[own["text"]] else "wrong"


@contextmanager
def beside(port: int, model: str) -> Iterator[list[Any]]:
    """Abuse and the watch of /health in processes of their own; what they found stands in the list in the end."""
    found: list[Any] = []
    with contextlib.ExitStack() as stack:
        command = [sys.executable, str(Path(__file__).with_name("abusers.py"))]
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        processes = [
            stack.enter_context(subprocess.Popen([*command, what, str(port), model], **pipes))
            for what in ("abuse", "health")
        ]
        try:
            yield found
        finally:
            found += [json.loads(process.communicate("", timeout=120)[0]) for process in processes]


def peak_memory(process: int) -> float:
    """MiB."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))


def measure(arguments: argparse.Namespace, report: Any) -> dict[str, Any]:
    requests = mixed_requests(arguments.requests)
    with tempfile.TemporaryDirectory() as folder:
        offline = Offline(*save_model(folder))
        expected = []
        for request in requests:
            expected.append([offline.write(request, choice) for choice in range(request.get("n", 1))])
            report("offline", len(expected), len(requests))
        requests = [request | {"model": folder} for request in requests]
        options = ["--max-batch-size", "16", "--max-queue", "256", "--arrival-seconds", "10"]
        with serving(folder, *options, open_files=OPEN_FILES) as (server, url, log):
            begun, memory, port = time.monotonic(), peak_memory(server.pid), urlparse(url).port
            assert port is not None
            with beside(port, folder) as found:
                time.sleep(arguments.before)  # the silent connections have filled the server
                replies = asyncio.run(ask_all(url, requests, arguments.clients, report))
            seconds, after = time.monotonic() - begun, peak_memory(server.pid)
            server.send_signal(signal.SIGTERM)
            status = server.wait(120)
            log_bytes = log.seek(0, 2)
    texts = Counter(choice["text"] for choices in expected for choice in choices)
    triples = zip(requests, replies, expected, strict=True)
    kinds = [judge(*triple, texts) for triple in triples]
    counts, answers = found
    health, failed = sorted(seconds for seconds, _ in answers), [fault for _, fault in answers if fault]
    return {
        "replies": {kind: kinds.count(kind) for kind in KINDS},
        "failures": [(requests[place], replies[place]) for place, kind in enumerate(kinds) if kind not in KINDS[:2]][
            :5
        ],
        "seconds": seconds,
        "health": {
            "asked": len(health),
            "failed": len(failed),
            "failures": failed[:5],
            "median_seconds": health[len(health) // 2],
            "longest_seconds": health[-1],
        },
        "abuse": counts,
        "peak_memory_mib": {"before": memory, "after": after},
        "log_bytes": log_bytes,
        "sigterm_status": status,
    }


def faults(found: dict[str, Any]) -> list[str]:
    replies, health = found["replies"], found["health"]
    bad = [f"{name}: {what}" for name, counts in found["abuse"].items() for what in counts if what.startswith("bad")]
    bad += [kind for kind in KINDS[2:] if replies[kind]]
    if health["failed"] or health["longest_seconds"] > HEALTH_SECONDS:
        bad.append("health")
    return bad + (["SIGTERM"] if found["sigterm_status"] else [])


def table(found: dict[str, Any]) -> str:
    health, memory = found["health"], found["peak_memory_mib"]
    rows = [
        (f"{found['requests']} requests of {found['clients']} clients",
         ", ".join(f"{count} {kind}" for kind, count in found["replies"].items())),
        ("/health on a new connection", f"{health['asked']} asked, {health['failed']} failed, median "
         f"{1000 * health['median_seconds']:.0f} ms, longest {1000 * health['longest_seconds']:.0f} ms"),
        ("the server's memory, peak", f"{memory['before']:.0f} MiB before, {memory['after']:.0f} MiB after"),
        ("the server's log", f"{found['log_bytes']} bytes in {found['seconds']:.0f} s"),
        ("SIGTERM", f"exit status {found['sigterm_status']}"),
        *((name.replace("_", " "), ", ".join(f"{count} × {what}" for what, count in sorted(counts.items())))
          for name, counts in found["abuse"].items()),
    ]  # fmt: skip
    return "\n".join(["| | |", "|---|---|", *(f"| {what} | {figures} |" for what, figures in rows)]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", type=Path, required=True, help="JSON file; a table in Markdown goes beside it")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--before", type=float, default=10, help="seconds of abuse before the first request")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    settings = {name: value for name, value in vars(arguments).items() if name != "output"}
    origin = {"time": now(), "command": command_line(), "commit": git_commit(), "versions": versions(LIBRARIES)}
    with reported_progress() as report:
        found = {**settings, **origin, **measure(arguments, report)}
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", "utf-8")
    arguments.output.with_suffix(".md").write_text(table(found), "utf-8")
    print(table(found))
    if bad := faults(found):
        sys.exit(f"serve_abuse: {'; '.join(bad)}")


if __name__ == "__main__":
    main()
