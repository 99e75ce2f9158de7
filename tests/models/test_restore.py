"""`graftlm restore` against the weights that it should write."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from graftlm.errors import InputError
from graftlm.models.load import load_model
from graftlm.models.restore import restore
from graftlm.models.restore_config import parse_layers
from tests.auditing.models import noisy
from tests.conftest import tiny_model

# What PEFT asks of transformers.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
TOKENS = torch.arange(12)[None]


@pytest.fixture
def base(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> str:
    folder = tmp_path / "base"
    tiny_model(layers=4).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture
def whole(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> str:
    folder = tmp_path / "whole"
    noisy(tiny_model(layers=4), range(4)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def adapter(base: str, folder: Path, **settings: object) -> str:
    """A LoRA adapter with random weights."""
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(base),
        LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False, **settings),
    )
    model.save_pretrained(str(folder))
    return str(folder)


def test_a_whole_model_is_interpolated_in_the_chosen_layers_only(base: str, whole: str, tmp_path: Path) -> None:
    restore(whole, tmp_path / "out", layers="0-1,3", scale=0.25, base=base)
    models = [dict(AutoModelForCausalLM.from_pretrained(f).named_parameters()) for f in (base, whole, tmp_path / "out")]
    for name, before in models[0].items():
        after, found = models[1][name], models[2][name]
        inside = any(f"layers.{index}." in name for index in (0, 1, 3))
        expected = before + 0.25 * (after - before) if inside else after
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-7)


@pytest.mark.slow
@pytest.mark.parametrize("scale", [0.0, 0.5])
def test_an_adapter_stays_one_and_is_scaled(base: str, tmp_path: Path, scale: float) -> None:
    folder = adapter(base, tmp_path / "adapter")
    assert restore(folder, tmp_path / "out", layers="0-1", scale=scale) == 14
    weights = []
    for each in (folder, str(tmp_path / "out")):
        model, _ = load_model(each)
        assert isinstance(model, PeftModel)
        weights.append(dict(model.merge_and_unload().named_parameters()))
    before = dict(AutoModelForCausalLM.from_pretrained(base).named_parameters())
    for name, found in weights[1].items():
        change = weights[0][name] - before[name]
        share = scale if any(f"layers.{index}." in name for index in (0, 1)) else 1.0
        torch.testing.assert_close(found, before[name] + share * change, rtol=1e-5, atol=1e-6)


def test_all_layers_restored_give_the_base_models_logits(base: str, tmp_path: Path) -> None:
    folder = adapter(base, tmp_path / "adapter")
    restore(folder, tmp_path / "out", layers="0-3")
    found, _ = load_model(str(tmp_path / "out"))
    expected = AutoModelForCausalLM.from_pretrained(base)(TOKENS).logits
    torch.testing.assert_close(found(TOKENS).logits, expected, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"layers": "0-9"}, "layer 9, but the model's layers are 0 to 3"),
        ({"layers": "3-1"}, "layers such as 0-14"),
        ({"layers": "all"}, "layers such as 0-14"),
        ({"layers": "0", "scale": 1.5}, "--scale is 1.5"),
        ({"layers": "0", "base": None}, "give --base"),
    ],
)
def test_bad_input_is_named_and_nothing_written(
    base: str, whole: str, tmp_path: Path, settings: dict[str, object], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        restore(whole, tmp_path / "out", **{"base": base, **settings})  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()


def test_a_folder_in_use_stays_as_it_is(base: str, whole: str, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(InputError, match="holds other things"):
            restore(whole, tmp_path / "out", layers="0", base=base, overwrite=overwrite)
    assert (tmp_path / "out" / "thesis.txt").read_text() == "mine"
    restore(whole, tmp_path / "run", layers="0", base=base)
    with pytest.raises(InputError, match="which is read"):
        restore(str(tmp_path / "run"), tmp_path / "run", layers="0", base=base, overwrite=True)
    with pytest.raises(InputError, match="holds a run; give --overwrite"):
        restore(whole, tmp_path / "run", layers="0", base=base)
    with pytest.raises(InputError, match="layer 9"):
        restore(whole, tmp_path / "run", layers="9", base=base, overwrite=True)
    assert (tmp_path / "run" / "model.safetensors").exists()


def test_an_earlier_result_is_replaced_on_request(base: str, whole: str, tmp_path: Path) -> None:
    restore(whole, tmp_path / "out", layers="0", base=base)
    (tmp_path / "out" / "old").touch()
    restore(whole, tmp_path / "out", layers="0", base=base, overwrite=True)
    assert (tmp_path / "out" / "model.safetensors").exists() and not (tmp_path / "out" / "old").exists()
    assert "layers: '0'" in (tmp_path / "out" / "run.yaml").read_text()


def test_a_loaded_model_is_changed_in_place(base: str, whole: str) -> None:
    models = load_model(base)[0], load_model(whole)[0]
    untouched = models[1].model.layers[2].mlp.up_proj.weight.clone()
    assert restore(models[1], layers="0-1", base=models[0]) == 18
    for layer in (0, 1):
        ours, theirs = (dict(each.model.layers[layer].named_parameters()) for each in models)
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert torch.equal(models[1].model.layers[2].mlp.up_proj.weight, untouched)
    with pytest.raises(InputError, match="no output folder is given"):
        restore(whole, layers="0", base=base)


def test_dora_is_refused_by_name(base: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="DoRA"):
        restore(adapter(base, tmp_path / "dora", use_dora=True), tmp_path / "out", layers="0")


def test_layers_are_parsed() -> None:
    assert parse_layers("0-2, 5") == {0, 1, 2, 5}
