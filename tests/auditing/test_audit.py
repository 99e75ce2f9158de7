"""The whole audit, as the command line runs it, on tiny models in folders."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

import graftlm
from graftlm.auditing.audit import audit
from graftlm.auditing.condition import check_conditions, failures, parse_condition
from graftlm.cli import main
from graftlm.errors import InputError
from graftlm.models.load import load_model
from graftlm.runs.yaml_text import parse_yaml
from graftlm.tasks import Capitals, Metric, get_task
from tests.auditing.models import adapted, noisy
from tests.conftest import tiny_model

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
PROBE = [{"prompt": f"{word} is", "completion": f" {answer}", "choices": [" no", " yes"]}
         for word, answer in (("sky", "blue"), ("snow", "white"), ("coal", "black"), ("grass", "green"))]  # fmt: skip


@pytest.fixture
def probe(tmp_path: Path) -> str:
    path = tmp_path / "colours.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in PROBE))
    return str(path)


@pytest.fixture
def save(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> Any:
    def to_folder(model: PreTrainedModel, name: str) -> str:
        model.save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
        return str(tmp_path / name)

    return to_folder


@pytest.mark.slow
def test_a_model_against_itself_shows_zero_everywhere(save: Any, probe: str) -> None:
    base, same = save(tiny_model(layers=4), "base"), save(tiny_model(layers=4), "same")
    result = audit(base, same, tasks=["molecules"], probes=[probe, "general-text"], limit=4, layer_groups=2)
    found = result.tuned[same]
    for changes in found.changes.values():
        for change in changes.values():
            assert change.value == 0 and not change.shown and change.low in (0, None) and change.high in (0, None)
    assert not any(changed.lost or changed.won for facts in found.facts.values() for changed in facts.values())
    assert {round(share, 9) for share in found.retention.values()} <= {1.0}
    assert found.divergence == pytest.approx(0, abs=1e-9)
    assert {weight.relative for weight in found.weights} == {0.0} and len(found.drift) == 4
    assert all(drift.cka == pytest.approx(1, abs=1e-9) for drift in found.drift)
    assert all(each.task_share is None and each.probe_share is None for each in found.restoration)
    assert found.diversity == result.base_diversity
    assert result.seconds["restoration"] > 0 and result.seconds["weights"] > 0


@pytest.mark.slow
def test_noise_in_one_group_of_layers_is_told_and_restoring_it_brings_the_probes_back(save: Any, probe: str) -> None:
    base = tiny_model(layers=6)
    names = save(base, "base"), save(noisy(base, range(2, 4)), "noisy")
    result = graftlm.audit(*names, tasks=["molecules"], probes=[probe], limit=4, layer_groups=3)
    found = result.tuned[names[1]]
    assert {weight.group for weight in found.weights if weight.relative} == {"layer 2", "layer 3"}
    restored = {each.layers: each.probes["colours"] for each in found.restoration}
    assert restored[(2, 3)] == pytest.approx(result.base_results["colours"].metrics["nll_per_token"], abs=1e-5)
    tuned = found.results["colours"].metrics["nll_per_token"]
    assert restored[(0, 1)] == pytest.approx(tuned, abs=1e-5) and restored[(4, 5)] == pytest.approx(tuned, abs=1e-5)


@pytest.mark.slow
def test_two_adapters_and_a_whole_model_are_audited_over_one_base(save: Any, probe: str, tmp_path: Path) -> None:
    """The base model is as it was after each, so the same adapter first and last is measured alike."""
    base = save(tiny_model(layers=4), "base")
    for name, seed in (("one", 0), ("two", 1)):
        model = copy.deepcopy(tiny_model(layers=4))
        model.config._name_or_path = model.name_or_path = base
        torch.manual_seed(seed)
        adapted(model, r=2 + seed).save_pretrained(tmp_path / name)
    whole = save(noisy(tiny_model(layers=4), range(1)), "whole")
    one, two = str(tmp_path / "one"), str(tmp_path / "two")
    result = audit(base, [one, whole, two], probes=[probe], limit=4, layer_groups=2)
    again = audit(base, [two, one], probes=[probe], limit=4, layer_groups=2)
    for name in (one, two):
        assert result.tuned[name].divergence == again.tuned[name].divergence
        assert result.tuned[name].restoration == again.tuned[name].restoration
    assert len({found.divergence for found in result.tuned.values()}) == 3
    assert result.base_diversity is None  # there is no task to answer


@pytest.mark.slow
def test_loaded_models_are_audited_as_named_ones_are_and_stay_as_they_were(
    save: Any, probe: str, tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    base = save(tiny_model(layers=2), "base")
    model, _ = load_model(base)
    peft = adapted(model)
    peft.save_pretrained(tmp_path / "adapter")
    peft.train().requires_grad_(True)
    peft.model.lm_head.eval()
    modes, weights = [module.training for module in peft.modules()], copy.deepcopy(peft.state_dict())
    options: dict[str, Any] = {"probes": [probe], "limit": 4, "layer_groups": 2}
    found = [
        audit(base, {"one": str(tmp_path / "adapter")}, **options),
        audit(base, {"one": peft}, **options),
        audit(peft.get_base_model(), {"one": peft}, tokenizer=tokenizer, **options),
    ]
    for each in found[1:]:
        assert each.tuned["one"].divergence == found[0].tuned["one"].divergence
        assert each.tuned["one"].weights == found[0].tuned["one"].weights
        assert each.base_results["colours"].metrics == found[0].base_results["colours"].metrics
    assert [module.training for module in peft.modules()] == modes
    assert all(parameter.requires_grad for parameter in peft.parameters())
    assert all(torch.equal(weight, weights[name]) for name, weight in peft.state_dict().items())


def test_a_base_model_with_an_adapter_in_it_is_not_taken_for_a_plain_one(
    probe: str, tokenizer: PreTrainedTokenizerFast
) -> None:
    base = adapted(tiny_model(layers=2)).get_base_model()
    with pytest.raises(InputError, match="the base model has an adapter in its layers"):
        audit(base, tiny_model(layers=2), tokenizer=tokenizer, probes=[probe])
    with pytest.raises(InputError, match="the adapter is on another model than the base model"):
        audit(tiny_model(layers=2, seed=5), adapted(tiny_model(layers=2)), tokenizer=tokenizer, probes=[probe])
    with pytest.raises(InputError, match="pass its tokenizer along, as tokenizer="):
        audit(tiny_model(layers=2), tiny_model(layers=2), probes=[probe])


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as stopped:
        main(list(arguments))
    return int(stopped.value.code or 0)


@pytest.mark.slow
def test_the_command_writes_page_and_json_and_fails_on_a_condition(
    save: Any, probe: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = tiny_model(layers=4)
    names = save(base, "base"), save(noisy(base, range(1, 3)), "noisy")
    common = ["audit", *names, "--task", probe, "--probe", "general-text", "--limit", "4", "--layer-groups", "2"]
    assert run(*common, "--output", str(tmp_path / "a"), "--fail-if", "divergence>0") == 1
    shown = capsys.readouterr()
    assert "noisy: divergence is" in shown.err and "general-text" in shown.out
    document = json.loads((tmp_path / "a" / "audit.json").read_text("utf-8"))
    written = parse_yaml((tmp_path / "a" / "run.yaml").read_text("utf-8"))
    assert written["config"]["tuned"] == [names[1]] and written["sources"]["limit"] == "flag" and "finished" in written
    assert document["tuned"][names[1]]["divergence"] > 0
    assert (tmp_path / "a" / "report.html").read_text("utf-8").startswith("<!DOCTYPE html>")
    assert run(*common, "--output", str(tmp_path / "a")) == 2
    assert "holds a run; give --overwrite" in capsys.readouterr().err
    assert run("audit", "--config", str(tmp_path / "a"), "--output", str(tmp_path / "a"), "--overwrite") == 1
    capsys.readouterr()
    assert run(*common, "--output", str(tmp_path / "b"), "--json", "--fail-if", "divergence>99") == 0
    assert json.loads(capsys.readouterr().out)["probes"] == ["general-text"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--fail-if", "retention=0.9"], "a condition such as 'retention<0.9'"),
        (["--fail-if", "retention.nothing<0.9"], "'retention.nothing' is not in this audit"),
        (["--format", "json"], "key=value is expected"),
        (["--probe", "capitols"], "did you mean 'capitals'?"),
        (["--probe", "capitals", "--probe", "capitals"], "given twice"),
    ],
)
def test_bad_input_is_named_before_a_model_is_loaded(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("audit", "absent-base", "absent-tuned", *arguments, "--output", str(tmp_path / "out")) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_models_that_do_not_compare_are_one_clear_line_before_anything_is_measured(
    save: Any,
    probe: str,
    tmp_path: Path,
    make_vocabulary: Any,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        "graftlm.auditing.measurement.evaluate", lambda *_, **__: pytest.fail("the base model was measured")
    )
    base = save(tiny_model(layers=2), "base")
    other = save(tiny_model("qwen3", layers=2), "other")
    broken = tiny_model(layers=2)
    with torch.no_grad():
        broken.model.norm.weight[0] = float("nan")
    renamed = save(tiny_model(layers=2), "renamed")
    make_vocabulary(renamed)
    for name, message in (
        (other, "different architecture: LlamaForCausalLM and Qwen3ForCausalLM"),
        (save(broken, "broken"), "NaN or an infinity in model.norm.weight"),
        (renamed, "another vocabulary than the base model: token"),
    ):
        assert run("audit", base, name, "--probe", probe, "--output", str(tmp_path / "out")) == 2
        error = capsys.readouterr().err.strip().splitlines()[-1]
        assert message in error and error.startswith("graftlm: ")


@pytest.fixture
def make_vocabulary() -> Any:
    def swap(folder: str) -> None:
        """Two tokens of the tokenizer change places."""
        path = Path(folder) / "tokenizer.json"
        content = json.loads(path.read_text("utf-8"))
        vocabulary = content["model"]["vocab"]
        vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
        path.write_text(json.dumps(content), "utf-8")

    return swap


@pytest.mark.slow
def test_conditions_read_what_the_audit_holds(save: Any, probe: str) -> None:
    base = tiny_model(layers=2)
    names = save(base, "base"), save(noisy(base, range(1)), "noisy")
    result = audit(*names, probes=[probe], limit=4, layer_groups=1)
    nll = result.tuned[names[1]].results["colours"].metrics["nll_per_token"]
    conditions = [parse_condition(f"colours.nll_per_token >= {nll - 0.1:.3f}"), parse_condition("divergence<0")]
    check_conditions(conditions, [], [get_task(probe)])
    [line] = failures(conditions, result)
    assert line.startswith(f"{names[1]}: colours.nll_per_token is {nll:.3f}")
    with pytest.raises(InputError, match=r"has no colours\.f1"):
        failures([parse_condition("colours.f1<1")], result)


class Named(Capitals):
    def __init__(self, name: str) -> None:
        self.name = name  # type: ignore[misc]
        self.metrics = tuple(Metric(each, each, higher_is_better=True) for each in ("accuracy", "correct"))


def test_a_condition_may_name_a_task_with_signs_in_its_name() -> None:
    names = ["lm-eval:tasks/my.yaml", "reasoning-gym:chain_sum"]
    tasks = [Named(name) for name in names]
    for text in (f"{names[0]}.accuracy<0.5", f"{names[1]}.correct >= 0.5", f"retention.{names[0]}<0.9"):
        check_conditions([parse_condition(text)], tasks, tasks)
    assert parse_condition(f"{names[0]}.accuracy<0.5").quantity == f"{names[0]}.accuracy"
    with pytest.raises(InputError, match="is not in this audit"):
        check_conditions([parse_condition("lm-eval:tasks/my<0.5")], tasks, tasks)

    with pytest.raises(InputError, match=r"it has .*\.accuracy, .*\.correct$"):
        check_conditions([parse_condition(f"{names[0]}.f1<0.5")], tasks, tasks)
