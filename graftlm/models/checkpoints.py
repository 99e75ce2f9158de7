"""Check a model on disk or on the hub, and say in one line what is wrong with it.

Weights are read from safetensors only: a pickle can run any code when it is loaded.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from graftlm.errors import InputError
from graftlm.models.checkpoint_values import (
    ADAPTER_CONFIG,
    check_adapter_values,
    check_model_values,
    read_object,
    weights_size,
)
from graftlm.runs.files import sha256_of

PICKLE_ENDINGS = (".bin", ".pth", ".pt", ".ckpt", ".pkl")
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "spiece.model", "vocab.json", "vocab.txt")


def is_adapter(folder: Path) -> bool:
    return (folder / ADAPTER_CONFIG).is_file()


def has_tokenizer(folder: Path) -> bool:
    return any((folder / name).is_file() for name in TOKENIZER_FILES)


def weights_fingerprint(folder: Path) -> str:
    """16 hexadecimal digits of the sha256 over its safetensors files; "" without any."""
    files = sorted(folder.glob("*.safetensors"))
    return sha256_of(files)[:16] if files else ""


def check_model_folder(folder: Path) -> None:
    """Raise InputError unless `folder` has a config that can be, a tokenizer and all of its safetensors files."""
    if not (folder / "config.json").is_file():
        raise InputError(f"model folder {folder} has no config.json (nor {ADAPTER_CONFIG}); is a model saved there?")
    check_weights(folder, "model")
    if not has_tokenizer(folder):
        raise InputError(f"model folder {folder} has no tokenizer; save the model's tokenizer there as well")
    check_model_values(folder)


def check_adapter_folder(folder: Path) -> None:
    """Raise InputError unless the adapter's weights lie beside its config, which can be one."""
    check_weights(folder, "adapter_model")
    check_adapter_values(folder)


def check_weights(folder: Path, stem: str) -> None:
    """Raise InputError unless `stem`.safetensors, or every file that its index lists, is there."""
    if (folder / f"{stem}.safetensors").is_file():
        return
    index = folder / f"{stem}.safetensors.index.json"
    if not index.is_file():
        raise InputError(describe_absent_weights(folder, stem))
    listed = read_object(index).get("weight_map")
    if not isinstance(listed, dict) or not all(isinstance(name, str) for name in listed.values()):
        raise InputError(f"{index} is damaged; copy the model anew")
    files = set(listed.values())
    if absent := sorted(name for name in files if not (folder / name).is_file()):
        raise InputError(f"model folder {folder} lacks {absent[0]}, which {index.name} lists; copy the model anew")


def describe_absent_weights(folder: Path, stem: str) -> str:
    pickles = sorted(path.name for path in folder.iterdir() if path.suffix in PICKLE_ENDINGS)
    if not pickles:
        return f"folder {folder} has no weights: {stem}.safetensors is missing"
    return (
        f"folder {folder} holds its weights as a pickle ({pickles[0]}), which can run code when loaded; "
        "convert it to safetensors first (save_pretrained writes that)"
    )


@contextlib.contextmanager
def explained_errors(source: str) -> Iterator[None]:
    """Turn what the libraries raise while they load `source` into one line of InputError."""
    import torch
    from safetensors import SafetensorError

    try:
        yield
    except InputError:
        raise
    except SafetensorError as error:
        weights_size(Path(source))  # names the file
        raise InputError(f"{source} is truncated or damaged ({error}); copy it anew") from error
    except (MemoryError, torch.OutOfMemoryError):
        raise  # the machine is at fault
    except Exception as error:  # a damaged file makes the libraries raise anything
        raise InputError(f"{source} cannot be loaded: {explain(error)}") from error
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # of tokenizers and safetensors, which are written in Rust
            raise
        raise InputError(f"{source} cannot be loaded: {explain(error)}; copy it anew") from error


def check_runs(model: Any, source: str) -> None:
    """Raise InputError where a weight of a loaded model is no number, or the model cannot read two tokens.

    What its config says may fit no weights though both can be loaded. A model whose weights lie elsewhere yet (sharded,
    or on the meta device) is left alone.
    """
    import torch
    from transformers.integrations import is_deepspeed_zero3_enabled

    from graftlm.models.finite import not_finite

    if is_deepspeed_zero3_enabled() or any(weight.is_meta for weight in model.parameters()):
        return
    if (odd := not_finite(model.named_parameters())) is not None:
        raise InputError(f"{source} has a NaN or an infinity in {odd}: its training diverged, or it is damaged")
    tokens = torch.tensor([[0, 1]], device=model.device)
    with explained_errors(source), torch.no_grad():
        logits = model(input_ids=tokens, attention_mask=torch.ones_like(tokens)).logits
    if torch.isnan(logits).any():
        raise InputError(f"{source} gives no numbers (NaN) for any text: its config is damaged")


def check_all_loaded(model: Any, folder: Path) -> None:
    """Raise InputError where the file of a LoRA adapter holds matrices without a place in the model.

    PEFT leaves them out unsaid.
    """
    from peft import get_peft_model_state_dict
    from safetensors import safe_open

    with safe_open(folder / "adapter_model.safetensors", framework="pt") as opened:
        names = list(opened.keys())
    there = {name for name in names if ".lora_" in name}
    if left_out := sorted(there - set(get_peft_model_state_dict(model, save_embedding_layers=False))):
        raise InputError(
            f"adapter {folder} holds {left_out[0]}, which its {ADAPTER_CONFIG} or its base model has no place for "
            f"({len(left_out)} of {len(there)} matrices)"
        )


def explain(error: BaseException) -> str:
    """The library's message in one line, or our words for the usual ones."""
    text = " ".join(str(error).partition("Exception raised from")[0].split())
    if not isinstance(error, (OSError, ValueError, RuntimeError, ImportError, UserWarning)):
        text = f"a value in its files does not fit ({type(error).__name__}: {text})"
    if "trust_remote_code" in text:
        return "it needs code of its own, which runs only with trust_remote_code; set that if you trust it"
    if "is not a local folder and is not a valid model identifier" in text:
        return "there is no such model on the Hugging Face hub, or it is private (then `hf auth login`)"
    if "gated repo" in text:
        return "it is gated; ask for access on its page and log in with `hf auth login`"
    if "model.safetensors" in text:
        return "it has no safetensors weights, and a pickle is refused, since it can run code when loaded"
    return text if len(text) <= 300 else f"{text[:297]}..."
