"""Load any causal language model: from the hub, a folder, a PEFT adapter, or the embedded default."""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import json
import os
import re
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graftlm.errors import InputError
from graftlm.models.bundled import SMOLLM2_135M, bundled_folder
from graftlm.models.checkpoint_values import ADAPTER_CONFIG
from graftlm.models.checkpoints import (
    check_adapter_folder,
    check_all_loaded,
    check_model_folder,
    check_runs,
    explained_errors,
    has_tokenizer,
    is_adapter,
)
from graftlm.models.devices import resolve_device, resolve_dtype
from graftlm.models.hub import hub_reachable

if TYPE_CHECKING:
    import torch
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

DEFAULT_MODEL = SMOLLM2_135M.name
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
# What an adapter needs from its repository: no weights but its own.
ADAPTER_FILES = [
    "adapter_*.json",
    "adapter_*.safetensors",
    "*token*",
    "*.jinja",
    "vocab.*",
    "merges.txt",
    "spiece.model",
]


@dataclass(frozen=True, kw_only=True)
class LoadOptions:
    """What `load_model` hands down, checked."""

    revision: str | None
    dtype: torch.dtype | str
    attn_implementation: str | None
    trust_remote_code: bool


def load_model(
    name: str | os.PathLike[str],
    *,
    revision: str | None = None,
    dtype: torch.dtype | str = "auto",
    device: torch.device | str | None = None,
    attn_implementation: str | None = None,
    trust_remote_code: bool = False,
) -> tuple[PreTrainedModel | PeftModel, PreTrainedTokenizerBase]:
    """Load a causal language model, in evaluation mode, and its tokenizer, which always has a pad token.

    Args:
        name: "smollm2-135m" (embedded, converted into the cache on first use), a folder with a Hugging Face
            model, a folder with a PEFT adapter (its base model is loaded by this same function), or a hub id
            of either. The embedded name wins over a folder of that name: write ./smollm2-135m for the folder.
        revision: branch, tag or commit on the hub.
        dtype: "auto" is float32 on a CPU (bfloat16 is far slower there), the checkpoint's own on a GPU.
        device: None is this process's accelerator (LOCAL_RANK's under torchrun) if there is one, or the CPU.
        attn_implementation: "sdpa", "eager", "flash_attention_2", ...; None takes the model's default.
        trust_remote_code: allow code from the model's repository to run.

    Returns:
        A PreTrainedModel, or for an adapter a PeftModel whose parameters are all frozen; and the tokenizer,
        of the adapter's folder if that has one.

    Raises:
        InputError: there is no such model, it is incomplete, damaged or a pickle, or an option is wrong.
    """
    target = resolve_device(device)
    options = LoadOptions(
        revision=revision,
        dtype=resolve_dtype(dtype, target),
        attn_implementation=attn_implementation,
        trust_remote_code=trust_remote_code,
    )
    with quiet_unless_terminal():
        model, tokenizer = load_named(os.fspath(name), options)
    set_pad_token(model, tokenizer)
    model = model.to(target)
    check_runs(model, os.fspath(name))
    return model, tokenizer


def fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """sha256 over the sorted vocabulary (token, id): equal for tokenizers whose ids mean the same."""
    vocabulary = json.dumps(sorted(tokenizer.get_vocab().items()), ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(vocabulary.encode()).hexdigest()


def load_named(name: str, options: LoadOptions) -> tuple[Any, PreTrainedTokenizerBase]:
    """Dispatch on what `name` is."""
    if name == DEFAULT_MODEL:
        return load_default(options)
    path = Path(name).expanduser()
    if path.is_dir():
        return load_folder(path, options)
    if path.exists():
        raise InputError(f"{name} is a file; give the folder that holds the model")
    if not HUB_ID.fullmatch(name):
        raise InputError(f"model folder {name!r} does not exist")
    return load_from_hub(name, options)


def load_default(options: LoadOptions) -> tuple[Any, PreTrainedTokenizerBase]:
    """The embedded model, or the same from the hub where its package is not installed."""
    if (folder := bundled_folder(SMOLLM2_135M)) is not None:
        return load_folder(folder, options)
    try:
        return load_from_hub(SMOLLM2_135M.hub_id, options)
    except InputError as error:
        raise InputError(
            f"model {DEFAULT_MODEL} is not installed ({SMOLLM2_135M.install_command}) "
            f"and could not be had from the hub either: {error}"
        ) from error


def load_folder(folder: Path, options: LoadOptions) -> tuple[Any, PreTrainedTokenizerBase]:
    if options.revision is not None:
        raise InputError(f"revision {options.revision!r} is given, but the folder {folder} has no revisions")
    if is_adapter(folder):
        return load_adapter(folder, options)
    check_model_folder(folder)
    return load_pretrained(str(folder), options, offline=True)


def load_from_hub(hub_id: str, options: LoadOptions) -> tuple[Any, PreTrainedTokenizerBase]:
    """A model or adapter from the hub, or from the local cache of the hub where that is out of reach."""
    offline = not hub_reachable()
    try:
        if (adapter := fetch_adapter(hub_id, options, offline)) is not None:
            return load_adapter(adapter, replace(options, revision=None))
        return load_pretrained(hub_id, options, offline=offline)
    except InputError as error:
        reason = str(error)
        if offline and not is_cached(hub_id, options):
            reason = (
                f"model {hub_id!r} is neither a folder here nor in the local cache, and the hub is "
                "out of reach (no internet, or HF_HUB_OFFLINE is set)"
            )
        raise InputError(f"{reason}{describe_nearest(hub_id)}") from error


def describe_nearest(name: str) -> str:
    near = difflib.get_close_matches(name.lower(), [DEFAULT_MODEL], n=1, cutoff=0.6)
    return f"; did you mean {near[0]!r}?" if near else ""


def is_cached(hub_id: str, options: LoadOptions) -> bool:
    """Whether the hub's local cache knows the model at all."""
    from huggingface_hub import try_to_load_from_cache

    files = ("config.json", ADAPTER_CONFIG)
    return any(isinstance(try_to_load_from_cache(hub_id, file, revision=options.revision), str) for file in files)


def fetch_adapter(hub_id: str, options: LoadOptions, offline: bool) -> Path | None:
    """The local copy of an adapter on the hub; None if `hub_id` is not an adapter."""
    from huggingface_hub import hf_hub_download, snapshot_download
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError

    where: dict[str, Any] = {"revision": options.revision, "local_files_only": offline}
    try:
        hf_hub_download(hub_id, ADAPTER_CONFIG, **where)
    except (EntryNotFoundError, HfHubHTTPError):
        return None
    with explained_errors(hub_id):
        return Path(snapshot_download(hub_id, allow_patterns=ADAPTER_FILES, **where))


def load_pretrained(source: str, options: LoadOptions, *, offline: bool) -> tuple[Any, PreTrainedTokenizerBase]:
    """A whole model, no adapter, from a folder or hub id; refused if it lacks a parameter of its config."""
    from transformers import AutoModelForCausalLM

    with explained_errors(source), warnings.catch_warnings():
        # A size of 0 ends in an error that says more.
        warnings.filterwarnings("ignore", message="Initializing zero-element tensors")
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            source,
            revision=options.revision or "main",
            dtype=options.dtype,
            attn_implementation=options.attn_implementation,
            trust_remote_code=options.trust_remote_code,
            local_files_only=offline,
            use_safetensors=True,
            output_loading_info=True,
            adapter_kwargs={"local_files_only": offline},  # else it asks the hub for an adapter even so
        )
    model, report = loaded
    # transformers only warns, and leaves such parameters random.
    if missing := sorted(report["missing_keys"]):
        raise InputError(
            f"the weights of {source} lack {len(missing)} parameters of its config, first {missing[0]}; "
            "the model is incomplete or of another architecture"
        )
    return model, load_tokenizer(source, options, offline=offline)


def load_tokenizer(source: str, options: LoadOptions, *, offline: bool) -> PreTrainedTokenizerBase:
    from transformers import AutoTokenizer

    with explained_errors(source):
        return AutoTokenizer.from_pretrained(
            source,
            revision=options.revision or "main",
            trust_remote_code=options.trust_remote_code,
            local_files_only=offline,
        )


def load_adapter(folder: Path, options: LoadOptions) -> tuple[PeftModel, PreTrainedTokenizerBase]:
    """A PEFT adapter on its base model, frozen."""
    from peft import PeftConfig

    check_adapter_folder(folder)
    with explained_errors(str(folder)):
        config = PeftConfig.from_pretrained(str(folder))
    base_name = resolve_base(config.base_model_name_or_path, folder)
    revision = None if base_name == DEFAULT_MODEL or Path(base_name).is_dir() else config.revision
    try:
        base, tokenizer = load_named(base_name, replace(options, revision=revision))
    except InputError as error:
        raise InputError(f"adapter {folder} needs its base model {base_name!r}: {error}") from error
    return attach_adapter(base, folder, *needs_of_adapter(base, tokenizer, folder, options))


def attach_adapter(
    base: Any, folder: Path, tokenizer: PreTrainedTokenizerBase, rows: int, altered: str | None
) -> tuple[PeftModel, PreTrainedTokenizerBase]:
    """The adapter of `folder` on `base`, which it changes in place, with what `needs_of_adapter` says of it."""
    from peft import PeftModel

    with explained_errors(str(folder)), warnings.catch_warnings():
        # PEFT only warns, and leaves such parameters random.
        warnings.filterwarnings("error", message="Found missing adapter keys")
        # No concern of the user: PEFT reads a property that transformers has renamed.
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing`", category=FutureWarning)
        if rows != base.get_input_embeddings().num_embeddings:
            base.resize_token_embeddings(rows)
        model: Any = PeftModel.from_pretrained(base, str(folder), is_trainable=False)
    model.base_alteration = altered or ""
    check_all_loaded(model, folder)
    return model.eval(), tokenizer


def needs_of_adapter(
    base: Any, tokenizer: PreTrainedTokenizerBase, folder: Path, options: LoadOptions
) -> tuple[PreTrainedTokenizerBase, int, str | None]:
    """The tokenizer and the rows of the embedding that the adapter of `folder` needs, and what it alters for good."""
    from peft import PeftConfig

    from graftlm.models.adapters import alteration, embedding_rows

    with explained_errors(str(folder)):
        config = PeftConfig.from_pretrained(str(folder))
        if has_tokenizer(folder):
            tokenizer = load_tokenizer(str(folder), options, offline=True)
        rows = embedding_rows(base, len(tokenizer), folder, config)
        return tokenizer, rows, alteration(base, rows, folder, config)


def adapter_on(
    base: Any, tokenizer: PreTrainedTokenizerBase, base_name: str, name: str
) -> tuple[PeftModel, PreTrainedTokenizerBase] | None:
    """The adapter `name` on `base`, a model that was loaded from `base_name`; None if `name` is no adapter on it, or
    one without which `base` would not be what it was.

    Saves loading the base model a second time. Raises InputError for a damaged adapter.
    """
    from peft import PeftConfig

    path = Path(name).expanduser()
    folder: Path | None = path
    options = LoadOptions(revision=None, dtype=base.dtype, attn_implementation=None, trust_remote_code=False)
    if not path.exists() and name != DEFAULT_MODEL and HUB_ID.fullmatch(name):
        folder = fetch_adapter(name, options, offline=not hub_reachable())
    if folder is None or not is_adapter(folder):
        return None
    check_adapter_folder(folder)
    with explained_errors(str(folder)):
        config = PeftConfig.from_pretrained(str(folder))
    wanted = resolve_base(config.base_model_name_or_path, folder)
    if wanted != base_name and not same_place(wanted, base_name):
        return None
    needs = needs_of_adapter(base, tokenizer, folder, options)
    return attach_adapter(base, folder, *needs) if needs[2] is None else None


def same_place(first: str, second: str) -> bool:
    """Whether both name one model; the embedded one also by its cache folder."""
    places = [
        bundled_folder(SMOLLM2_135M) if name == DEFAULT_MODEL else Path(name).expanduser() for name in (first, second)
    ]
    return all(place is not None and place.is_dir() for place in places) and os.path.samefile(*map(str, places))


def resolve_base(name: str | None, folder: Path) -> str:
    """The base model that an adapter names; the embedded one by name, as its cache folder differs by user."""
    if not name:
        raise InputError(f"{folder / ADAPTER_CONFIG} names no base model; set base_model_name_or_path in it")
    path = Path(name)
    return DEFAULT_MODEL if path.name == DEFAULT_MODEL and not path.exists() else name


def set_pad_token(model: Any, tokenizer: PreTrainedTokenizerBase) -> None:
    """Pad with the end-of-sequence token where there is no pad token. The vocabulary stays as it is."""
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token_id is None:
            raise InputError(f"the tokenizer of {tokenizer.name_or_path} has neither pad nor end-of-sequence token")
        tokenizer.pad_token = tokenizer.eos_token
    if model.generation_config is not None and model.generation_config.pad_token_id is None:
        model.generation_config.pad_token_id = tokenizer.pad_token_id


@contextlib.contextmanager
def quiet_unless_terminal() -> Iterator[None]:
    """No progress bars of transformers in a log file."""
    import transformers

    logging: Any = transformers.utils.logging
    if sys.stderr.isatty() or not logging.is_progress_bar_enabled():
        yield
        return
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.enable_progress_bar()
