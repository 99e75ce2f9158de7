"""Tokenizers that end each text, and texts that spell their own beginning: what the model reads all the same."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import processors

from graftlm.auditing.representations import _batches
from graftlm.data.encoding import beginning, encode_messages, encode_pair, encode_prompt, encode_text, without_end
from graftlm.data.load import load_rows, row_lengths
from graftlm.data.written_text import write_texts
from graftlm.decoding.batches import completion_log_likelihoods, generate_completions
from graftlm.decoding.candidates import candidate_log_likelihoods
from graftlm.decoding.generation import stream_completion
from graftlm.errors import InputError
from graftlm.heads.config import DistillConfig
from graftlm.heads.texts import domain_prompts, general_prompt_ids
from graftlm.pruning.encoding import encode_chain
from graftlm.pruning.importance import importance
from graftlm.reinforce.reinforce import build_trainer as build_reinforcement
from graftlm.runs.run import Run
from graftlm.serve.prompts import Prompts
from graftlm.serve.settings import ServeSettings
from graftlm.tuning.terms.kl_anchor import KLAnchor
from graftlm.tuning.tune import build_trainer
from tests.conftest import byte_tokenizer, tiny_model
from tests.reinforce import test_reinforce
from tests.reinforce import training as reinforcement
from tests.tuning import test_tune, training
from tests.tuning.plain import PEFT_WARNING

pytestmark = [pytest.mark.filterwarnings(PEFT_WARNING), pytest.mark.filterwarnings("ignore:.*deprecated:FutureWarning")]
BOS, EOS = 256, 257
TEXT = "a prompt"


@pytest.fixture
def plain() -> Any:
    """A tokenizer that begins each text."""
    tokenizer = byte_tokenizer()
    tokenizer.add_bos_token = True
    return tokenizer


@pytest.fixture
def ending(plain: Any) -> Any:
    """The same, but it ends each text as well."""
    tokenizer = byte_tokenizer()
    tokenizer.add_bos_token = tokenizer.add_eos_token = True
    assert tokenizer(TEXT)["input_ids"] == [*plain(TEXT)["input_ids"], EOS]
    return tokenizer


def streamed(tokenizer: Any) -> list[int]:
    return stream_completion(tiny_model(), tokenizer, TEXT, lambda piece: None, max_new_tokens=6, chat=False).ids


def anchor_ids(tokenizer: Any) -> Any:
    anchor = KLAnchor(texts=[TEXT])
    anchor.prepare(tiny_model(), tokenizer)
    return anchor.batch(0).input_ids.tolist()


READERS: dict[str, Callable[[Any], Any]] = {
    "prompt": lambda tokenizer: encode_prompt(tokenizer, TEXT),
    "pair": lambda tokenizer: encode_pair(tokenizer, TEXT, " and more"),
    "evaluate": lambda tokenizer: completion_log_likelihoods(tiny_model(), tokenizer, [(TEXT, " and more")]),
    "choices": lambda tokenizer: candidate_log_likelihoods(tiny_model(), tokenizer, [TEXT], [[" x", " yes"]]),
    "completions": lambda tokenizer: generate_completions(tiny_model(), tokenizer, [TEXT], 6, stop=None),
    "generate": streamed,
    "serve": lambda tokenizer: Prompts(tiny_model(), tokenizer, ServeSettings()).encode_prompt(TEXT),
    "text of heads": lambda tokenizer: write_texts(tiny_model(), tokenizer, [TEXT], tokens=6, max_new_tokens=6),
    "general prompts": lambda tokenizer: general_prompt_ids(DistillConfig(model="m", output="o"), tokenizer),
    "anchor": anchor_ids,
    "drift": lambda tokenizer: [ids.tolist() for ids, _ in _batches(tokenizer, [TEXT, "b"], 1, 128)],
    "pruning": lambda tokenizer: encode_chain(tokenizer, TEXT, " so it is", " 5").ids,
    "importance": lambda tokenizer: importance(tokenizer, {"prompt": TEXT, "completion": " so 5"}, [(0, 3)], [1]),
}  # fmt: skip


@pytest.mark.parametrize("reader", READERS)
def test_a_tokenizer_that_ends_each_text_does_not_end_what_the_model_goes_on_with(
    reader: str, plain: Any, ending: Any
) -> None:
    assert READERS[reader](ending) == READERS[reader](plain)


def test_prompts_from_rows_of_text_are_not_ended(plain: Any, ending: Any, tmp_path: Path) -> None:
    data = tmp_path / "rows.jsonl"
    data.write_text('{"text": "one thing"}\n{"text": "other"}\n')
    config = DistillConfig(model="m", output="o", data=str(data))
    assert domain_prompts(config, ending) == domain_prompts(config, plain)
    assert all(EOS not in ids for ids in domain_prompts(config, ending))


def test_libraries_get_a_tokenizer_that_leaves_texts_open_and_the_given_one_stays_as_it_is(
    plain: Any, ending: Any
) -> None:
    for single in ("<bos> $A <eos>", "$A <eos>"):
        ending.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single=single, pair="$A $B", special_tokens=[("<bos>", BOS), ("<eos>", EOS)]
        )
        before = list(ending(TEXT)["input_ids"])
        assert list(without_end(ending)(TEXT)["input_ids"]) == encode_text(ending, TEXT) == before[:-1]
        assert list(ending(TEXT)["input_ids"]) == before
    assert without_end(plain) is plain


def test_a_tokenizer_whose_end_cannot_be_switched_off_is_refused(ending: Any) -> None:
    ending.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<pad> $A <eos>", pair="$A $B", special_tokens=[("<pad>", 258), ("<eos>", EOS)]
    )
    assert encode_text(ending, "a") == [258, *ending("a", add_special_tokens=False)["input_ids"]]
    with pytest.raises(InputError, match=r"ends each text.*post_processor"):
        without_end(ending)


def test_a_text_that_spells_its_beginning_begins_once(plain: Any) -> None:
    assert beginning(plain) == "<bos>"
    assert encode_text(plain, "<bos>a") == encode_text(plain, "a") == plain("a")["input_ids"]
    assert encode_text(plain, "<bos>") == [BOS] == encode_text(plain, "")
    assert encode_pair(plain, "<bos>a", "b") == encode_pair(plain, "a", "b")
    assert (beginning(byte_tokenizer()), encode_text(byte_tokenizer(), "<bos>")) == ("", [BOS])


@pytest.mark.parametrize("packing", [False, True])
def test_trained_rows_begin_once_and_end_once(ending: Any, packing: bool, tmp_path: Path) -> None:
    folder, data = tmp_path / "tiny", tmp_path / "rows.jsonl"
    tiny_model().save_pretrained(folder)
    ending.save_pretrained(folder)
    data.write_text('{"prompt": "ab", "completion": " cd"}\n{"prompt": "<bos>ab", "completion": " cd<eos>"}\n')
    config = test_tune.config(folder, data, tmp_path / "run", packing=packing, max_length=16,
                              **test_tune.NEXT_TOKEN)  # fmt: skip
    with Run.create(config.output, "tune", config, {}) as opened:
        rows = build_trainer(config, opened).train_dataset
    text = [ids for row in rows["input_ids"] for ids in row]
    one = [BOS, *byte_tokenizer()("ab cd")["input_ids"], EOS]
    assert text == [*one, *one]
    assert [label for row in rows["labels"] for label in row] == [-100, -100, -100, *one[3:]] * 2


@pytest.mark.parametrize(
    "row",
    [
        {"text": "one thing"},
        {"text": "ended<eos>"},
        {"prompt": "a", "completion": " b"},
        {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]},
    ],
)
def test_the_length_of_a_row_is_that_which_trl_gives_it(row: dict[str, Any], plain: Any, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    rows = load_rows(tmp_path / "rows.jsonl")
    trainer = training.MultiTokenTrainer(
        tiny_model(), training.config(tmp_path, mtp_coefficient=0.01), train_dataset=rows, processing_class=plain
    )
    assert row_lengths(rows, plain) == [len(ids) for ids in trainer.train_dataset["input_ids"]]


GENERATION = (
    "{% for m in messages %}[{{ m.role }}]{% if m.role == 'assistant' %}{% generation %}{{ m.content }}<eos>"
    "{% endgeneration %}{% else %}{{ m.content }}<eos>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


@pytest.mark.parametrize("template", [None, GENERATION])
@pytest.mark.parametrize("off", [{"weight": 0}, {"train": False}])
def test_the_labels_of_a_batch_hold_the_turns_that_count_and_no_others(
    template: str | None, off: dict[str, Any], tmp_path: Path
) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = template or tokenizer.chat_template
    say = [("user", "a"), ("assistant", "first"), ("user", "b"), ("assistant", "second"), ("user", "c")]
    messages: list[dict[str, Any]] = [{"role": role, "content": content} for role, content in say]
    messages[1] |= off
    (tmp_path / "rows.jsonl").write_text(json.dumps({"messages": messages}) + "\n")
    trainer = training.MultiTokenTrainer(
        tiny_model(),
        training.config(tmp_path, mtp_coefficient=0.01, per_device_train_batch_size=1),
        train_dataset=load_rows(tmp_path / "rows.jsonl"),
        processing_class=tokenizer,
    )
    [batch] = trainer.get_train_dataloader()
    [ids], [labels] = batch["input_ids"], batch["labels"]
    assert tokenizer.decode(ids) == "[user]a<eos>[assistant]first<eos>[user]b<eos>[assistant]second<eos>"
    assert tokenizer.decode(labels[labels != -100]) == "second<eos>"


def test_rows_of_text_need_an_end_token(tmp_path: Path) -> None:
    folder, data, endless = tmp_path / "tiny", tmp_path / "rows.jsonl", byte_tokenizer()
    tiny_model().save_pretrained(folder)
    endless.eos_token = None
    endless.save_pretrained(folder)
    data.write_text('{"prompt": "ab", "completion": " cd"}\n')
    config = test_tune.config(folder, data, tmp_path / "run")
    with Run.create(config.output, "tune", config, {}) as opened, pytest.raises(InputError, match="no end-of-sequence"):
        build_trainer(config, opened)


def test_prompts_of_reinforcement_are_not_ended(ending: Any, tmp_path: Path) -> None:
    folder, data = tmp_path / "tiny", tmp_path / "rows.jsonl"
    tiny_model().save_pretrained(folder)
    ending.save_pretrained(folder)
    data.write_text('{"question": "ab", "answer": "c"}\n{"question": "<bos>ab", "answer": "c"}\n')
    config = test_reinforce.config(folder, data, tmp_path / "run")
    with Run.create(config.output, "reinforce", config, {}) as opened:
        trainer = build_reinforcement(config, opened)
    assert list(trainer.train_dataset["prompt"]) == ["ab", "ab"]
    assert trainer.processing_class("ab")["input_ids"] == [BOS, *byte_tokenizer()("ab")["input_ids"]]


def test_trainers_refuse_a_tokenizer_with_which_trl_ends_prompts(ending: Any, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="without_end"):
        training.MultiTokenTrainer(
            tiny_model(),
            training.config(tmp_path, mtp_coefficient=0.01),
            train_dataset=training.rows(),
            processing_class=ending,
        )
    with pytest.raises(InputError, match="without_end"):
        reinforcement.trainer(ending, tmp_path)


def test_a_question_that_the_chat_template_leaves_out_is_not_pruned() -> None:
    tokenizer = byte_tokenizer()
    question = [{"role": "tool", "content": "5"}, {"role": "user", "content": "?"}]
    assert encode_chain(tokenizer, question, " so", " 5").question == encode_messages(tokenizer, question)
    tokenizer.chat_template = "{% for m in messages if m.role != 'tool' %}[{{ m.role }}]{{ m.content }}{% endfor %}"
    with pytest.raises(InputError, match=r"leaves out messages\.0\.content"):
        encode_chain(tokenizer, question, " so", " 5")


def test_half_a_character_in_a_prompt_is_named(plain: Any) -> None:
    with pytest.raises(InputError, match="half a character"):
        encode_prompt(plain, "a\ud83d")
    with pytest.raises(InputError, match="half a character"):
        generate_completions(tiny_model(), plain, ["\udcff"])
    assert torch.equal(torch.tensor(encode_prompt(plain, "é")), torch.tensor(plain("é")["input_ids"]))
