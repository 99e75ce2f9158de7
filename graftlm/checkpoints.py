"""What can be wrong with a model on disk or on the hub, said in one line.

Weights are read from safetensors only: a pickle can run any code when it is loaded.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path

from graftlm.errors import InputError
from graftlm.files import sha256_of

ADAPTER_CONFIG = "adapter_config.json"
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
    """Raise InputError unless `folder` has a config, a tokenizer and all of its safetensors files."""
    if not (folder / "config.json").is_file():
        raise InputError(f"model folder {folder} has no config.json (nor {ADAPTER_CONFIG}); is a model saved there?")
    check_weights(folder, "model")
    if not has_tokenizer(folder):
        raise InputError(f"model folder {folder} has no tokenizer; save the model's tokenizer there as well")


def check_adapter_folder(folder: Path) -> None:
    """Raise InputError unless the adapter's weights lie beside its config."""
    check_weights(folder, "adapter_model")


def check_weights(folder: Path, stem: str) -> None:
    """Raise InputError unless `stem`.safetensors, or every file that its index lists, is there."""
    if (folder / f"{stem}.safetensors").is_file():
        return
    index = folder / f"{stem}.safetensors.index.json"
    if not index.is_file():
        raise InputError(describe_absent_weights(folder, stem))
    try:
        files = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise InputError(f"{index} is damaged; copy the model anew") from error
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
    from safetensors import SafetensorError

    try:
        yield
    except InputError:
        raise
    except SafetensorError as error:
        broken = find_broken_safetensors(Path(source)) if Path(source).is_dir() else None
        raise InputError(f"{broken or source} is truncated or damaged ({error}); copy it anew") from error
    except (OSError, ValueError, RuntimeError, ImportError, UserWarning) as error:
        raise InputError(f"{source} cannot be loaded: {explain(error)}") from error


def find_broken_safetensors(folder: Path) -> Path | None:
    """The first safetensors file of `folder` whose header or size is wrong."""
    from safetensors import SafetensorError, safe_open

    for path in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(path, framework="pt"):
                pass
        except SafetensorError:
            return path
    return None


def explain(error: Exception) -> str:
    """The library's message in one line, or our words for the usual ones."""
    text = " ".join(str(error).split())
    if "trust_remote_code" in text:
        return "it needs code of its own, which runs only with trust_remote_code; set that if you trust it"
    if "is not a local folder and is not a valid model identifier" in text:
        return "there is no such model on the Hugging Face hub, or it is private (then `hf auth login`)"
    if "gated repo" in text:
        return "it is gated; ask for access on its page and log in with `hf auth login`"
    if "model.safetensors" in text:
        return "it has no safetensors weights, and a pickle is refused, since it can run code when loaded"
    return text if len(text) <= 300 else f"{text[:297]}..."
