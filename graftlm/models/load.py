"""Load any causal language model: from the hub, a folder, a PEFT adapter, or the embedded default."""

from __future__ import annotations

import contextlib
import difflib
import os
import re
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graftlm.errors import InputError
from graftlm.models.bundled import NAMED_MODELS, named_folder
from graftlm.models.checkpoint_values import ADAPTER_CONFIG
from graftlm.models.checkpoints import check_model_folder, check_runs, explained_errors, has_tokenizer, is_adapter
from graftlm.models.devices import resolve_device, resolve_dtype
from graftlm.models.hub import hub_reachable

if TYPE_CHECKING:
    import torch
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from graftlm.models.saved_adapter import SavedAdapter

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
# What an adapter needs from its repository: no weights but its own.
ADAPTER_FILES = [
    *("adapter_*.json", "adapter_*.safetensors"),
    *("*token*", "*.jinja", "vocab.*", "merges.txt", "spiece.model"),
]


@dataclass(frozen=True, kw_only=True)
class LoadOptions:
    """Checked settings of `load_model`."""

    dtype: torch.dtype | str
    revision: str | None = None
    attn_implementation: str | None = None
    trust_remote_code: bool = False


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


def load_named(name: str, options: LoadOptions) -> tuple[Any, PreTrainedTokenizerBase]:
    """A model by short name, folder or hub id."""
    if name in NAMED_MODELS:
        return load_short_name(name, options)
    path = Path(name).expanduser()
    if path.is_dir():
        return load_folder(path, options)
    if path.exists():
        raise InputError(f"{name} is a file; give the folder that holds the model")
    if not HUB_ID.fullmatch(name):
        raise InputError(f"model folder {name!r} does not exist")
    return load_from_hub(name, options)


def load_short_name(name: str, options: LoadOptions) -> tuple[Any, PreTrainedTokenizerBase]:
    """A model with a short name, from its folder, or from the hub where its package is not installed."""
    if (folder := named_folder(name)) is not None:
        return load_folder(folder, options)
    known = NAMED_MODELS[name]
    try:
        return load_from_hub(known.hub_id, options)
    except InputError as error:
        raise InputError(
            f"model {name} is not installed ({known.install_command}) and could not be had from the hub either: {error}"
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
        near = difflib.get_close_matches(hub_id.lower(), list(NAMED_MODELS), n=1, cutoff=0.6)
        raise InputError(f"{reason}; did you mean {near[0]!r}?" if near else reason) from error


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
    from graftlm.models.saved_adapter import SavedAdapter

    adapter = SavedAdapter(folder)
    name = adapter.base_name
    revision = None if name in NAMED_MODELS or Path(name).is_dir() else adapter.config.revision
    try:
        base, tokenizer = load_named(name, replace(options, revision=revision))
    except InputError as error:
        raise InputError(f"adapter {folder} needs its base model {name!r}: {error}") from error
    tokenizer, rows, alteration = needs_of_adapter(adapter, base, tokenizer, options)
    return adapter.put_on(base, rows, alteration), tokenizer


def needs_of_adapter(
    adapter: SavedAdapter, base: Any, tokenizer: PreTrainedTokenizerBase, options: LoadOptions
) -> tuple[PreTrainedTokenizerBase, int, str | None]:
    """The tokenizer and the rows of the embedding that `adapter` needs, and what it alters of `base` for good."""
    with explained_errors(str(adapter.folder)):
        if has_tokenizer(adapter.folder):
            tokenizer = load_tokenizer(str(adapter.folder), options, offline=True)
        rows = adapter.embedding_rows(base, len(tokenizer))
        return tokenizer, rows, adapter.alteration(base, rows)


def adapter_on(
    base: Any, tokenizer: PreTrainedTokenizerBase, base_name: str, name: str
) -> tuple[PeftModel, PreTrainedTokenizerBase] | None:
    """The adapter `name` on `base`, a model that was loaded from `base_name`, which saves loading that again.

    None where `name` is no adapter on it, or one that would alter `base` for good. Raises InputError for a damaged
    adapter.
    """
    from graftlm.models.saved_adapter import SavedAdapter

    path = Path(name).expanduser()
    folder: Path | None = path
    options = LoadOptions(dtype=base.dtype)
    if not path.exists() and name not in NAMED_MODELS and HUB_ID.fullmatch(name):
        folder = fetch_adapter(name, options, offline=not hub_reachable())
    if folder is None or not is_adapter(folder):
        return None
    adapter = SavedAdapter(folder)
    if adapter.base_name != base_name and not same_place(adapter.base_name, base_name):
        return None
    tokenizer, rows, alteration = needs_of_adapter(adapter, base, tokenizer, options)
    return (adapter.put_on(base, rows, alteration), tokenizer) if alteration is None else None


def same_place(first: str, second: str) -> bool:
    """Whether both name one folder; a model with a short name also by its own."""
    names = (first, second)
    places = [named_folder(name) if name in NAMED_MODELS else Path(name).expanduser() for name in names]
    return all(place is not None and place.is_dir() for place in places) and os.path.samefile(*map(str, places))


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
