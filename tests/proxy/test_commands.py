"""--expert, --antiexpert and --alpha on the command line."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from graftlm.cli import main
from graftlm.heads.heads import MultiTokenHeads
from graftlm.proxy import ProxyTunedModel
from tests.conftest import tiny_model
from tests.proxy.models import sharp
from tests.proxy.test_model import folders
from tests.serve.conftest import ascii_model, greedy, serving

__all__ = ["folders"]  # the fixture
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as stopped:
        main(list(arguments))
    return int(stopped.value.code or 0)


@pytest.mark.slow
def test_generate_writes_what_the_steered_model_writes(
    folders: dict[str, str], tokenizer: PreTrainedTokenizerFast, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pair = ["--expert", folders["adapter"], "--antiexpert", folders["antiexpert"]]
    common = ["generate", folders["base"], "--no-chat", "--prompt", "abc", "--max-new-tokens", "6"]
    assert run(*common) == 0
    plain = capsys.readouterr().out
    assert run(*common, *pair, "--alpha", "0") == 0
    assert capsys.readouterr().out == plain
    assert run(*common, *pair) == 0
    model = ProxyTunedModel(folders["base"], folders["adapter"], folders["antiexpert"])
    ids = torch.tensor([tokenizer("abc")["input_ids"]])
    written = model.generate(ids, max_new_tokens=6, do_sample=False)[0, ids.shape[1] :]
    text = capsys.readouterr().out
    assert text.strip() == tokenizer.decode(written, skip_special_tokens=True).strip()
    model.save_pretrained(tmp_path / "composition")
    assert run("generate", str(tmp_path / "composition"), *common[2:]) == 0
    assert capsys.readouterr().out == text, "the folder of the composition is a model like any other"
    MultiTokenHeads.from_model(model.base, 1).save_pretrained(tmp_path / "heads")
    assert run("generate", str(tmp_path / "composition"), *common[2:], "--heads", str(tmp_path / "heads")) == 2
    assert "--heads: heads know one model" in capsys.readouterr().err


def test_evaluate_measures_the_steered_model(
    folders: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "a", "completion": " b"}\n{"prompt": "c", "completion": " d"}\n')
    common = ["evaluate", folders["base"], "--task", str(rows), "--json"]
    found = []
    for extra in ([], ["--expert", folders["expert"], "--antiexpert", folders["antiexpert"]]):
        assert run(*common, *extra) == 0
        document = json.loads(capsys.readouterr().out)
        found.append(document["results"][folders["base"]]["rows"]["metrics"]["nll_per_token"])
    assert found[0] != found[1] and document["settings"]["alpha"] == 1.0


@pytest.mark.slow
def test_audit_holds_the_steered_model_against_the_base_model(
    folders: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "a", "completion": " b", "choices": [" x"]}\n' * 2)
    pair = ["--expert", folders["adapter"], "--antiexpert", folders["antiexpert"]]
    common = ["audit", folders["base"], *pair, "--task", str(rows), "--probe", "general-text", "--limit", "2"]
    found = {}
    for alpha in ("0", "1"):
        assert run(*common, "--alpha", alpha, "--output", str(tmp_path / alpha), "--json") == 0
        [found[alpha]] = json.loads(capsys.readouterr().out)["tuned"].values()
    assert found["0"]["divergence"] == 0 and found["1"]["divergence"] > 0.01
    assert found["1"]["weights"] == found["1"]["restoration"] == found["1"]["drift"] == []
    page = (tmp_path / "1" / "report.html").read_text("utf-8")
    assert "Every measure" in page and "put back" not in page
    assert run("audit", folders["base"], "--output", str(tmp_path / "none")) == 2
    assert "no tuned model is given" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--antiexpert", "{antiexpert}"], "--antiexpert is given without --expert"),
        (["--expert", "{expert}"], "no anti-expert is given"),
        (["--expert", "absent"], "absent"),
        (["--expert", "{adapter}", "--alpha", "nan"], "alpha is nan"),
    ],
)
def test_bad_input_is_one_clear_line(
    arguments: list[str], message: str, folders: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    given = [argument.format(**folders) for argument in arguments]
    assert run("generate", folders["base"], "--prompt", "a", *given) == 2
    assert message in capsys.readouterr().err.strip().splitlines()[-1]


@pytest.mark.slow
def test_a_steered_model_is_served_as_any_other(tokenizer: PreTrainedTokenizerFast) -> None:
    """Requests of different lengths share a batch, and each gets what the model writes alone."""
    base = ascii_model(tokenizer, layers=3)
    model = ProxyTunedModel(base, *(sharp(tiny_model(seed=seed)) for seed in (1, 2)))
    prompts = ["Once", "A much longer prompt, for padding", "x"]
    with serving(model, tokenizer) as server, ThreadPoolExecutor(len(prompts)) as pool:
        answers = list(pool.map(lambda prompt: server.complete(prompt, max_tokens=12).choices[0].text, prompts))
    assert answers == [greedy(model, tokenizer, tokenizer(prompt)["input_ids"], 12) for prompt in prompts]
    assert answers[0] != greedy(base, tokenizer, tokenizer("Once")["input_ids"], 12)
