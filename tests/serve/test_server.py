"""`graftlm serve` as a process: its start, its errors, its end."""

from __future__ import annotations

import builtins
import json
import os
import re
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from openai import OpenAI
from transformers import PreTrainedTokenizerFast

from graftlm.errors import InputError
from graftlm.serve import ServeSettings
from tests.serve.conftest import SECONDS, ascii_model
from tests.test_cli import call, saved


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerFast) -> str:
    model = ascii_model(tokenizer, max_position_embeddings=100_000)
    return saved(tmp_path_factory.mktemp("serve") / "model", model, tokenizer)


@contextmanager
def process(*arguments: str, **environment: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The server's process, and the address that it says it serves at."""
    command = [sys.executable, "-m", "graftlm", "serve", *arguments, "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, **environment}) as server:
        assert server.stderr is not None
        try:
            assert select.select([server.stderr], [], [], SECONDS)[0], "the server does not start"
            line = server.stderr.readline()
            found = re.fullmatch(r"serving .* at (http://127\.0\.0\.1:\d+/v1) \(Ctrl-C stops\)\n", line)
            assert found, line + server.stderr.read()
            yield server, found[1]
        finally:
            server.kill()


@pytest.mark.slow
def test_sigterm_finishes_what_runs_and_is_status_0(folder: str) -> None:
    arguments = [folder, "--max-tokens-limit", "50000", "--grace-seconds", "600", "--request-seconds", "600"]
    with (
        process(*arguments, GRAFTLM_API_KEY="secret") as (server, url),
        OpenAI(base_url=url, api_key="secret") as client,
    ):
        stream = client.completions.create(model=folder, prompt="Once", max_tokens=400, stream=True, temperature=0)
        first = next(stream)
        server.send_signal(signal.SIGTERM)
        chunks = [first, *stream]
        assert "".join(chunk.choices[0].text for chunk in chunks)
        assert len(chunks) == 400
        assert chunks[-1].choices[0].finish_reason == "length"
        assert server.wait(SECONDS) == 0
        with pytest.raises(OSError, match="refused"):
            socket.create_connection(("127.0.0.1", int(url.split(":")[2].split("/")[0])))


@pytest.mark.slow
def test_what_is_not_finished_in_the_grace_period_ends_with_an_error(folder: str) -> None:
    arguments = [folder, "--max-tokens-limit", "90000", "--grace-seconds", "0.5"]
    with process(*arguments) as (server, url), OpenAI(base_url=url, api_key="none") as client:
        stream = client.completions.create(model=folder, prompt="Once", max_tokens=90_000, stream=True)
        next(stream)
        begun = time.monotonic()
        server.send_signal(signal.SIGINT)
        with pytest.raises(Exception, match="the server is shutting down"):
            list(stream)
        assert server.wait(SECONDS) == 0
        assert time.monotonic() - begun < SECONDS / 2


@pytest.mark.slow
def test_a_second_interrupt_ends_at_once_and_quietly(folder: str) -> None:
    with (
        process(folder, "--max-tokens-limit", "90000") as (server, url),
        OpenAI(base_url=url, api_key="none") as client,
    ):
        stream = client.completions.create(model=folder, prompt="Once", max_tokens=90_000, stream=True)
        next(stream)
        server.send_signal(signal.SIGINT)
        time.sleep(0.3)  # two signals of one kind at once are one
        server.send_signal(signal.SIGINT)
        assert server.wait(SECONDS) == 0
        stream.close()
        assert server.stderr is not None
        assert "Traceback" not in server.stderr.read()


def test_a_port_in_use_is_one_line_before_the_model_is_loaded(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert call("serve", "no/such-model", "--port", str(port)) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"graftlm: cannot listen at 127.0.0.1:{port}: Address already in use")
    assert err.count("\n") == 1


def test_a_missing_extra_is_one_line_that_names_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in [name for name in sys.modules if name.startswith(("graftlm.serve.server", "uvicorn"))]:
        monkeypatch.delitem(sys.modules, name)
    real = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name == "uvicorn":
            raise ModuleNotFoundError("No module named 'uvicorn'", name="uvicorn")
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    assert call("serve", "model") == 2
    assert capsys.readouterr().err == "graftlm: serve needs uvicorn: pip install 'graftlm[serve]'\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--host", "0.0.0.0"], "--host 0.0.0.0 lets others use the model; give --api-key KEY or set GRAFTLM_API_KEY"),
        (["--host", "::"], "--host :: lets others use the model"),
        (["--api-key", " "], "--api-key is empty"),
        (["--max-queue", "0"], "--max-queue is 0, but it must be at least 1"),
        (["--request-seconds", "nan"], "--request-seconds is nan"),
        (["--port", "70000"], "--port is 70000"),
        (["--host", "no.such.host.invalid", "--api-key", "k"], "cannot listen at no.such.host.invalid:8000"),
    ],
)
def test_bad_settings_are_one_line_and_status_2(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("GRAFTLM_API_KEY", raising=False)
    assert call("serve", "no/such-model", *arguments) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"graftlm: {message}")
    assert err.count("\n") == 1


def test_a_key_allows_any_host_and_is_not_shown() -> None:
    settings = ServeSettings(host="0.0.0.0", api_key="secret")
    assert "secret" not in repr(settings)
    with pytest.raises(InputError):
        ServeSettings(host="0.0.0.0")


def test_help_says_that_the_variable_hides_the_key(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("serve", "--help") == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "keeps it out of the list of processes" in out
    assert "GRAFTLM_API_KEY" in out


def test_importing_the_package_loads_no_server() -> None:
    code = (
        "import sys, graftlm.cli, graftlm.serve.settings\n"
        "import json; print(json.dumps(sorted({'torch', 'fastapi', 'uvicorn', 'pydantic'} & set(sys.modules))))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=SECONDS)
    assert json.loads(result.stdout) == [], result.stderr
