"""Steps that the verbs share which train with a Hugging Face trainer: settings, adapter, resuming, saving.

run folder: model/ (the plain model or adapter), checkpoints/, metrics.jsonl, run.yaml.
"""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, TypeVar

import torch
from peft import LoraConfig, PeftModel, PeftType
from transformers import EarlyStoppingCallback, TrainerState, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import get_last_checkpoint, rotate_checkpoints

from graftlm.data.encoding import without_end
from graftlm.errors import InputError
from graftlm.models.adapters import merged, train_adapter
from graftlm.models.finite import not_finite
from graftlm.models.given import GivenPair, given_model, name_of
from graftlm.runs.console import say
from graftlm.runs.files import partial_of, write_text, written_folder
from graftlm.runs.run import SUMMARY, Run
from graftlm.tuning.callbacks import InterruptCallback, RunCallback
from graftlm.tuning.resuming import UnloggedSums
from graftlm.tuning.trainer_settings import check_trackers, check_trainer_settings

CHECKPOINTS = "checkpoints"
MODEL = "model"
MODEL_SETTINGS, MODEL_OPTIONS = "model_init_kwargs", ("attn_implementation", "dtype", "revision")
Arguments = TypeVar("Arguments")


def trainer_arguments(
    cls: type[Arguments], folder: Path, settings: Mapping[str, Any], further: Mapping[str, Any]
) -> Arguments:
    """The trainer's arguments, an instance of `cls`; `further` (from --trainer) has the last word.

    Raises InputError for an unknown field or a wrong value in `further`, or for what the trainer refuses.
    """
    further = check_trainer_settings(cls, further)
    check_trackers("--report-to", settings.get("report_to"))
    with warnings.catch_warnings(), refused_settings():
        # transformers warns of the names that TRL still uses.
        warnings.simplefilter("ignore", FutureWarning)
        given = {name: value for name, value in {**settings, **further}.items() if name != MODEL_SETTINGS}
        return cls(str(folder / CHECKPOINTS), **given)  # type: ignore[call-arg]


def arguments_as(kind: type[Arguments], args: Any) -> Arguments:
    """Convert arguments of a trainer of transformers or TRL to `kind`, whose defaults fill in what they lack.

    Raises InputError for another kind of object, and for settings that `kind` refuses.
    """
    if isinstance(args, kind):
        return args
    if not isinstance(args, TrainingArguments):
        raise InputError(f"args is a {type(args).__name__}, but a {kind.__name__} or TrainingArguments is expected")
    # Not `to_dict`, which hides whatever is named a token, the end-of-sequence token too.
    known = {field.name for field in fields(kind) if field.init}  # type: ignore[arg-type]  # a dataclass
    given = {field.name: getattr(args, field.name) for field in fields(args) if field.init and field.name in known}
    if given.get("steps_per_generation") is not None:
        given.pop("generation_batch_size")  # GRPOConfig derives each from the other and takes one of them only
    return kind(**given)


def model_to_train(model: GivenPair, further: Mapping[str, Any], *, trust_remote_code: bool, **defaults: Any) -> Any:
    """Load `model` with the MODEL_OPTIONS that `further` (from --trainer) has in `model_init_kwargs`.

    A tokenizer that ends each text does so no more: TRL encodes prompts with it. Raises InputError for other options.
    """
    given = further.get(MODEL_SETTINGS) or {}
    if not isinstance(given, Mapping) or (unknown := [key for key in given if key not in MODEL_OPTIONS]):
        what = f"does not take {unknown[0]!r}" if isinstance(given, Mapping) else f"is {given!r}"
        raise InputError(f"--trainer {MODEL_SETTINGS} {what}: give a mapping of {', '.join(MODEL_OPTIONS)}")
    name = name_of(model[0])
    model, tokenizer = given_model(*model, trust_remote_code=trust_remote_code, **{**defaults, **given})
    opened = without_end(tokenizer)
    if opened is not tokenizer:
        say(f"graftlm: the tokenizer of {name} ends each text; the one in training, and beside the result, does not")
    return model, opened


@contextmanager
def refused_settings() -> Iterator[None]:
    """Turn a trainer's complaint about its settings into one line of InputError."""
    try:
        yield
    except InputError:
        raise
    except (TypeError, ValueError, ImportError) as error:
        raise InputError(f"the trainer refuses its settings: {' '.join(str(error).split())}") from error


def save_steps(steps: int | None) -> dict[str, Any]:
    """Checkpoints every so many steps, or at the end of each epoch."""
    return {"save_strategy": "epoch"} if steps is None else {"save_strategy": "steps", "save_steps": steps}


def trained_part(model: Any, method: str, rank: int, alpha: int, dropout: float) -> tuple[Any, LoraConfig | None]:
    """Select what `method` trains of the model; return the model, and the LoRA adapter that is still to be added.

    An adapter that is there is trained on, all of it, since a second one would not load without the first; with
    another method it is merged. A new one is put on every linear layer of the decoder; PEFT leaves the unembedding out.
    InputError for an adapter that can be neither.
    """
    adapted = isinstance(model, PeftModel)
    kind: Any = model.active_peft_config.peft_type if adapted else None
    if adapted and not hasattr(model, "merge_and_unload"):
        raise InputError(f"the adapter is {kind.value}, which is neither trained on nor merged: give the base model")
    if method != "lora":
        return merged(model).requires_grad_(True), None
    if adapted:
        if kind != PeftType.LORA:
            raise InputError(f"the adapter is {kind.value}, and only LoRA is trained on: --method full merges it")
        train_adapter(model)
        return model, None
    return model, LoraConfig(
        r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules="all-linear", task_type="CAUSAL_LM"
    )


def checkpointing() -> dict[str, Any] | None:
    """Every layer is recomputed on a GPU; on a CPU, where memory is rarely short, every fifth (bench/results)."""
    return None if torch.cuda.is_available() else {"every_n_layers": 5}


def train_and_save(trainer: Any, run: Run, *, push_to_hub: bool) -> None:
    """Train (from the last checkpoint where `run` is resumed), and save the model into the run folder.

    KeyboardInterrupt after Ctrl-C, once the step under way is done and a checkpoint is saved.
    """
    checkpoint = last_checkpoint(run.folder / CHECKPOINTS) if run.resumed else None
    state = TrainerState()
    if checkpoint is not None:
        state = state_of(checkpoint, write=run.is_main)
        if run.is_main:  # a kill may have come before
            rotate_checkpoints(
                str(run.folder / CHECKPOINTS), trainer.args.save_total_limit, state.best_model_checkpoint
            )
    restore_patience(trainer, state)
    done = at_last_step(trainer, state)
    if run.resumed and not done:
        run.rewind(state.global_step)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of the libraries, to one another
        if done:
            assert checkpoint is not None
            end_of(trainer, state, checkpoint)
        else:
            trainer.train(resume_from_checkpoint=checkpoint)
    interrupt = next(c for c in trainer.callback_handler.callbacks if isinstance(c, InterruptCallback))
    if interrupt.interrupted:
        raise KeyboardInterrupt(
            f"checkpoint saved at step {trainer.state.global_step}; continue with: {run.resume_command}"
        )
    if not_finite((name, p) for name, p in trainer.model.named_parameters() if p.requires_grad) is not None:
        raise FloatingPointError(
            f"the weights are not finite after step {trainer.state.global_step}, and not saved: lower the learning rate"
        )
    save_model(trainer, run.folder / MODEL)
    if push_to_hub:
        trainer.push_to_hub()
    say(f"tuned model: {run.folder / MODEL}")


def state_of(checkpoint: str, *, write: bool) -> TrainerState:
    """The state in a checkpoint; where the run has been moved the best one is that beside it, which is written down."""
    path = Path(checkpoint) / TRAINER_STATE_NAME
    state = TrainerState.load_from_json(str(path))
    if (best := state.best_model_checkpoint) is not None:
        beside = Path(checkpoint).with_name(Path(best).name)
        state.best_model_checkpoint = str(beside) if beside.is_dir() else None
        if write and state.best_model_checkpoint != best:
            write_text(path, json.dumps(asdict(state), indent=2, sort_keys=True) + "\n")
    return state


def end_of(trainer: Any, state: TrainerState, checkpoint: str) -> None:
    """Put the trainer where its last step left it, and log its summary if a kill came before that."""
    best = state.best_model_checkpoint if trainer.args.load_best_model_at_end else None
    trainer._load_from_checkpoint(best or checkpoint)
    logged = next(c for c in trainer.callback_handler.callbacks if isinstance(c, RunCallback)).run.metrics()
    if not any(SUMMARY in line for line in logged):
        trainer.state = state
        sums = next(c for c in trainer.callback_handler.callbacks if isinstance(c, UnloggedSums))
        sums.restore((state.stateful_callbacks or {}).get(UnloggedSums.__name__) or {})
        trainer._total_loss_scalar += trainer._tr_loss.item()
        trainer.log({"total_flos": state.total_flos, SUMMARY: 0.0})


def restore_patience(trainer: Any, state: TrainerState) -> None:
    """Early stopping goes on counting where it was, which transformers (5.23) does not see to."""
    for callback in trainer.callback_handler.callbacks:
        if isinstance(callback, EarlyStoppingCallback):
            known: Any = (state.stateful_callbacks or {}).get("EarlyStoppingCallback") or {}
            for name, value in known.get("attributes", {}).items():
                setattr(callback, name, value)


def at_last_step(trainer: Any, state: TrainerState) -> bool:
    """Tell whether nothing is left to train.

    transformers (5.23) would take one more step in the middle of an epoch, and train on to the next evaluation where
    early stopping has ended the training.
    """
    stopped = any(
        callback.early_stopping_patience_counter >= callback.early_stopping_patience
        for callback in trainer.callback_handler.callbacks
        if isinstance(callback, EarlyStoppingCallback)
    )
    sharded = trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled
    return not sharded and (stopped or 0 < state.max_steps <= state.global_step)


def last_checkpoint(folder: Path) -> str | None:
    """Path of the newest complete checkpoint; None where there is none.

    Incomplete ones, which a kill leaves, are deleted: one cut short has no trainer_state.json, which is written last,
    or half of it; one half deleted lacks a file that the newest has.
    """
    while folder.is_dir() and (newest := get_last_checkpoint(str(folder))):
        try:
            json.loads((Path(newest) / TRAINER_STATE_NAME).read_text("utf-8"))
        except (OSError, ValueError):
            shutil.rmtree(newest)
            continue
        files = [path.relative_to(newest) for path in Path(newest).rglob("*")]
        for other in folder.glob("checkpoint-*"):
            if not all((other / file).exists() for file in files):
                shutil.rmtree(other)
        return newest
    return None


def save_model(trainer: Any, folder: Path) -> None:
    """Write the tuned model beside `folder`, then put it in place at once."""
    if "ref" in getattr(trainer.model, "peft_config", {}):  # TRL's copy of the adapter that the training began with
        trainer.accelerator.unwrap_model(trainer.model).delete_adapter("ref")
    with written_folder(folder) if trainer.args.should_save else nullcontext(partial_of(folder)) as scratch:
        trainer.save_model(str(scratch))
        if trainer.args.should_save:
            # TRL's pickled arguments; run.yaml has them in plain text.
            (scratch / "training_args.bin").unlink(missing_ok=True)
