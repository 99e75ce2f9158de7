"""load_rows: every form and file type to one form, every bad input as one clear line."""

from __future__ import annotations

import csv
import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet
from transformers import PreTrainedTokenizerFast

from graftlm.data import load as graftlm_datasets
from graftlm.data.load import (
    data_fingerprint,
    general_prompts,
    general_text,
    load_rows,
    prompt_tokens,
    prompt_too_long,
)
from graftlm.errors import InputError
from graftlm.reinforce.prompts import load_prompts
from graftlm.tasks.file_probe import FileProbe
from tests.conftest import byte_tokenizer

PAIRS = [{"prompt": "2+2=", "completion": "4"}, {"prompt": 'é,\n"', "completion": "漢"}]
USER, ASSISTANT = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}


def write(path: Path, rows: list[Any]) -> Path:
    """`rows` in the format that the path's ending names."""
    path.parent.mkdir(parents=True, exist_ok=True)
    plain = path.with_suffix("") if path.suffix == ".gz" else path
    if plain.suffix == ".jsonl":
        plain.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif plain.suffix == ".json":
        plain.write_text(json.dumps(rows))
    elif plain.suffix == ".csv":
        with plain.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    else:
        parquet.write_table(pa.Table.from_pylist(rows), plain)
    if plain != path:
        path.write_bytes(gzip.compress(plain.read_bytes()))
        plain.unlink()
    return path


def load(tmp_path: Path, *rows: Any) -> list[dict[str, Any]]:
    return list(load_rows(write(tmp_path / "data.jsonl", list(rows))))


def refuse(source: Path | str, split: str = "train", **options: Any) -> str:
    """The one line with which load_rows refuses `source`."""
    with pytest.raises(InputError) as error:
        load_rows(source, split, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


def refuse_rows(tmp_path: Path, *rows: Any) -> str:
    return refuse(write(tmp_path / "data.jsonl", list(rows)))


@pytest.mark.parametrize("ending", ["json", "jsonl", "csv", "parquet"])
@pytest.mark.parametrize("compression", ["", ".gz"])
def test_every_file_type_gives_the_same_rows(tmp_path: Path, ending: str, compression: str) -> None:
    rows = load_rows(write(tmp_path / f"data.{ending}{compression}", PAIRS))
    assert list(rows) == PAIRS
    assert rows.column_names == ["prompt", "completion"]


def test_json_lines_under_the_ending_json_are_read(tmp_path: Path) -> None:
    lines = write(tmp_path / "data.jsonl", PAIRS)
    assert list(load_rows(lines.rename(tmp_path / "data.json"))) == PAIRS


def test_a_byte_order_mark_and_blank_lines_are_skipped(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("\ufefftext\nx\n", encoding="utf-8")
    (tmp_path / "b.jsonl").write_text('\ufeff{"text": "x"}\n\n', encoding="utf-8")
    assert list(load_rows(tmp_path / "a.csv")) == list(load_rows(tmp_path / "b.jsonl")) == [{"text": "x"}]


def test_a_unicode_line_separator_inside_a_row_does_not_end_it(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "a\u2028b"}\n', encoding="utf-8")
    assert list(load_rows(tmp_path / "a.jsonl")) == [{"text": "a\u2028b"}]


def test_text_stays_text_and_empty_texts_are_left_out(tmp_path: Path) -> None:
    assert load(tmp_path, {"text": "one", "id": 1}, {"text": ""}, {"text": "two"}) == [
        {"text": "one"},
        {"text": "two"},
    ]


def test_a_conversation_gives_one_row_for_each_assistant_turn(tmp_path: Path) -> None:
    system = {"role": "system", "content": "Be brief."}
    more = {"role": "user", "content": "And?"}
    end = {"role": "assistant", "content": "Bye"}
    assert load(tmp_path, {"messages": [system, USER, ASSISTANT, more, end, more]}) == [
        {"prompt": [system, USER], "completion": [ASSISTANT]},
        {"prompt": [system, USER, ASSISTANT, more], "completion": [end]},
    ]


def test_an_assistant_turn_that_nothing_precedes_is_context_only(tmp_path: Path) -> None:
    greeting = {"role": "assistant", "content": "Welcome"}
    assert load(tmp_path, {"messages": [greeting, USER, ASSISTANT]}) == [
        {"prompt": [greeting, USER], "completion": [ASSISTANT]}
    ]


def test_sharegpt_roles_become_those_of_the_template(tmp_path: Path) -> None:
    turns = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]
    assert load(tmp_path, {"conversations": turns, "system": "S", "id": "x"}) == [
        {"prompt": [{"role": "system", "content": "S"}, USER], "completion": [ASSISTANT]}
    ]


def test_alpaca_becomes_a_question_and_an_answer(tmp_path: Path) -> None:
    rows = load(
        tmp_path,
        {"instruction": "Add.", "input": "1 2", "output": "3", "text": "### Instruction ..."},
        {"instruction": "Hi", "input": "", "output": "Hello"},
    )
    assert rows[0]["prompt"] == [{"role": "user", "content": "Add.\n\n1 2"}]
    assert rows[1] == {"prompt": [USER], "completion": [ASSISTANT]}


def test_conversational_prompts_and_completions_pass(tmp_path: Path) -> None:
    row = {"prompt": [USER], "completion": [ASSISTANT]}
    assert load(tmp_path, row) == [row]


def test_token_weights_pass_through(tmp_path: Path) -> None:
    assert load(tmp_path, {**PAIRS[0], "weights": [1, 0.5], "importance": [0.0]}) == [
        {**PAIRS[0], "weights": [1.0, 0.5], "importance": [0.0]}
    ]


def test_many_rows_keep_their_order_across_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graftlm_datasets, "CHUNK_ROWS", 3)
    texts = [{"text": str(i)} for i in range(8)]
    assert load(tmp_path, *texts) == texts


def test_limit_counts_the_rows_that_come_out(tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", [{"messages": [USER, ASSISTANT, USER, ASSISTANT]}, {"messages": None}])
    assert len(load_rows(file, limit=2)) == 2  # the bad row behind is not reached
    assert "limit is 0" in refuse(file, limit=0)


def test_a_folder_is_read_by_split(tmp_path: Path) -> None:
    for name in ("train-00001.jsonl", "train-00000.jsonl", "sub/valid.csv", "test.parquet"):
        write(tmp_path / name, [{"text": name}])
    (tmp_path / "README.md").write_text("# Data")
    assert [row["text"] for row in load_rows(tmp_path)] == ["train-00000.jsonl", "train-00001.jsonl"]
    assert [row["text"] for row in load_rows(tmp_path, "validation")] == ["sub/valid.csv"]
    assert [row["text"] for row in load_rows(tmp_path, "test")] == ["test.parquet"]


def test_hidden_copies_of_a_file_do_not_count(tmp_path: Path) -> None:
    for name in ("train.jsonl", ".ipynb_checkpoints/train-checkpoint.jsonl", "._train.jsonl"):
        write(tmp_path / name, [{"text": name}])
    assert [row["text"] for row in load_rows(tmp_path)] == ["train.jsonl"]


def test_a_csv_file_as_pandas_writes_it_and_one_with_a_huge_cell(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(",prompt,completion\n0,a,b\n")
    assert list(load_rows(tmp_path / "a.csv")) == [{"prompt": "a", "completion": "b"}]
    (tmp_path / "a.csv").write_text(f"text\n{'x' * 200_000}\n")
    assert "a cell of more than 131,072 characters" in refuse(tmp_path / "a.csv")


def test_a_folder_without_train_files_trains_on_all_that_name_no_other_split(tmp_path: Path) -> None:
    for name in ("a.jsonl", "b.jsonl", "test.jsonl"):
        write(tmp_path / "data" / name, [{"text": name}])
    assert [row["text"] for row in load_rows(tmp_path / "data")] == ["a.jsonl", "b.jsonl"]
    assert "'validation'" in refuse(tmp_path / "data", "validation")


def test_a_file_is_not_taken_for_a_split_that_it_is_not(tmp_path: Path) -> None:
    file = write(tmp_path / "data.jsonl", PAIRS)
    assert "'validation'" in refuse(file, "validation")
    assert len(load_rows(file.rename(tmp_path / "my_dev.jsonl"), "validation")) == 2


def test_a_built_in_task_is_data_too() -> None:
    rows = load_rows("molecules", limit=3)
    assert rows.column_names == ["prompt", "completion"] and len(rows) == 3


def test_missing_data_is_refused_at_once(tmp_path: Path) -> None:
    assert "does not exist" in refuse(tmp_path / "absent.jsonl")
    assert "does not exist" in refuse("absent.jsonl")
    assert "molecules" in refuse("molecule")  # the tasks are listed; the hub is off in tests
    assert "'nobody/no-such-data'" in refuse("nobody/no-such-data")


def test_a_hub_id_is_loaded_with_its_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def load_dataset(*names: str | None, split: str) -> list[dict[str, Any]]:
        asked.append((*names, split))
        return [{"messages": [USER, ASSISTANT]}, {"messages": None}]

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    rows = load_rows("openai/gsm8k:main", "test", limit=1)
    assert asked == [("openai/gsm8k", "main", "test")] and rows[0]["prompt"] == [USER]
    assert "row 2 of openai/gsm8k" in refuse("openai/gsm8k")


def test_an_unreachable_hub_is_said_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", False)
    monkeypatch.setattr(graftlm_datasets, "hub_reachable", lambda: False)
    assert "out of reach" in refuse("nobody/no-such-data")


def test_an_unsupported_ending_names_the_supported(tmp_path: Path) -> None:
    (tmp_path / "data.xlsx").touch()
    assert ".jsonl" in refuse(tmp_path / "data.xlsx")
    (tmp_path / "only").mkdir()
    (tmp_path / "only" / "notes.txt").touch()
    assert "no data files" in refuse(tmp_path / "only")


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.json", "b.jsonl"])
def test_empty_data_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text({"a.json": "[]", "b.jsonl": '{"text": ""}\n'}.get(name, ""))
    assert "has no rows" in refuse(tmp_path / name)


def test_a_malformed_line_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n\n{"text": \n')
    assert "line 3 of" in refuse(tmp_path / "a.jsonl")
    (tmp_path / "a.json").write_text('[{"text": "a"}')
    assert "not valid JSON" in refuse(tmp_path / "a.json")
    assert "row 1 of" in refuse_rows(tmp_path, ["no", "object"])


def test_a_key_or_column_given_twice_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n{"text": "b", "x": {"y": 1, "y": 2}}\n')
    assert "line 2 of" in refuse(tmp_path / "a.jsonl") and "'y' is given twice" in refuse(tmp_path / "a.jsonl")
    (tmp_path / "a.json").write_text('[{"text": "a", "text": "b"}]')
    assert "'text' is given twice" in refuse(tmp_path / "a.json")
    (tmp_path / "a.csv").write_text("text,id,text\na,1,b\n")
    assert "two columns 'text'" in refuse(tmp_path / "a.csv")


def test_json_that_is_nested_too_deep_is_refused(tmp_path: Path) -> None:
    for ending in ("json", "jsonl"):
        (tmp_path / f"a.{ending}").write_text('{"text": ' + "[" * 200_000 + "\n")
        assert "nested too deep" in refuse(tmp_path / f"a.{ending}")


def test_damaged_files_are_named(tmp_path: Path) -> None:
    whole = write(tmp_path / "a.jsonl.gz", PAIRS * 50).read_bytes()
    (tmp_path / "a.jsonl.gz").write_bytes(whole[:-9])
    assert "no whole gzip" in refuse(tmp_path / "a.jsonl.gz")
    (tmp_path / "a.parquet").write_bytes(b"PAR1 no parquet")
    assert "no whole Parquet" in refuse(tmp_path / "a.parquet")
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "\xff"}\n')
    assert "not UTF-8" in refuse(tmp_path / "a.jsonl")
    (tmp_path / "a.csv").write_text("prompt,completion\na,b,c\n")
    assert "row 1" in refuse(tmp_path / "a.csv")


@pytest.mark.parametrize("ending", ["jsonl", "json", "jsonl.gz"])
@pytest.mark.parametrize("bad", ['{"prompt": "a\\ud83d"}', '{"prompt": "b", "x": [{"\\uDE00": 1}]}'])
def test_half_a_character_is_refused_with_file_and_row(tmp_path: Path, ending: str, bad: str) -> None:
    path = tmp_path / f"data.{ending}"
    rows = ['{"prompt": "\\ud83d\\ude00 \\\\ud83d", "completion": "c"}', bad]
    content = f"[{','.join(rows)}]" if ending == "json" else "\n".join(rows)
    path.write_bytes(gzip.compress(content.encode()) if ending.endswith("gz") else content.encode())
    message = refuse(path)
    assert message.startswith(f"row 2 of {path}") and "half a character" in message
    assert load_rows(path, limit=1)[0]["prompt"] == "😀 \\ud83d"
    with pytest.raises(InputError, match="row 2 of"):
        FileProbe(path)
    with pytest.raises(InputError, match="row 2 of"):
        load_prompts(str(path), rows=5)


def test_unknown_columns_are_listed_beside_the_supported_forms(tmp_path: Path) -> None:
    message = refuse_rows(tmp_path, {"question": "a", "answer": "b"})
    assert "row 1 of" in message and "question, answer" in message and "prompt + completion" in message


def test_a_later_row_without_the_column_is_named(tmp_path: Path) -> None:
    message = refuse_rows(tmp_path, PAIRS[0], {"prompt": "a", "answer": "b"})
    assert "row 2 of" in message and "'completion'" in message and "prompt, answer" in message


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": None, "completion": "b"},
        {"prompt": "a", "completion": 4},
        {"prompt": "a", "completion": ""},
        {"prompt": "a", "completion": [ASSISTANT]},
        {"prompt": [USER], "completion": [ASSISTANT]},
        {"prompt": "a", "completion": "b", "weights": [1.0]},
    ],
)
def test_a_bad_value_names_its_row(tmp_path: Path, row: dict[str, Any]) -> None:
    assert "row 3 of" in refuse_rows(tmp_path, *PAIRS, row)


@pytest.mark.parametrize("weights", ["[1.0]", [-1.0], [float("nan")], [True], 1.0])
def test_bad_token_weights_are_refused(tmp_path: Path, weights: Any) -> None:
    assert "'weights'" in refuse_rows(tmp_path, {**PAIRS[0], "weights": weights})


@pytest.mark.parametrize(
    "turns",
    [
        "text",
        [],
        [USER],
        [ASSISTANT],
        [USER, {"role": "assistant", "content": None}],
        [USER, {"role": "wizard", "content": "x"}],
        [USER, "Hello"],
    ],
)
def test_a_bad_conversation_names_its_row(tmp_path: Path, turns: Any) -> None:
    assert "row 2 of" in refuse_rows(tmp_path, {"messages": [USER, ASSISTANT]}, {"messages": turns})


@pytest.mark.parametrize("off", [{"weight": 0}, {"train": False}, {"training": False}, {"weight": 0.0, "train": None}])
def test_a_turn_that_is_not_to_be_trained_on_is_context_only(tmp_path: Path, off: dict[str, Any]) -> None:
    draft = {"role": "assistant", "content": "Draft"}
    expected = [{"prompt": [USER, draft, USER], "completion": [ASSISTANT]}]
    messages = [USER, {**draft, **off}, {**USER, **off}, {**ASSISTANT, "weight": 1, "train": True}]
    assert load(tmp_path, {"messages": messages}) == expected
    turns = [{**turn, "from": turn["role"], "value": turn["content"]} for turn in messages]
    assert load(tmp_path, {"conversations": turns}) == expected
    assert load(tmp_path, {"prompt": messages[:1], "completion": messages[1:]}) == expected
    for ending in ("json", "parquet"):
        assert list(load_rows(write(tmp_path / f"more.{ending}", [{"messages": messages}]))) == expected


@pytest.mark.parametrize("on", [{"weight": 0.5}, {"weight": "0"}, {"train": 2}, {"weight": 1, "train": False}])
def test_what_says_neither_yes_nor_no_of_a_turn_names_its_row(tmp_path: Path, on: dict[str, Any]) -> None:
    good = {"messages": [USER, ASSISTANT]}
    assert "row 2 of" in refuse_rows(tmp_path, good, {"messages": [USER, {**ASSISTANT, **on}]})


def test_no_turn_to_train_on_and_one_that_cannot_be_are_refused(tmp_path: Path) -> None:
    assert "no assistant turn to train on" in refuse_rows(tmp_path, {"messages": [USER, {**ASSISTANT, "weight": 0}]})
    assert "only assistant turns" in refuse_rows(tmp_path, {"messages": [{**USER, "train": True}, ASSISTANT]})
    assert "only assistant turns" in refuse_rows(tmp_path, {"messages": [{**ASSISTANT, "weight": 1}, USER, ASSISTANT]})


def test_a_completion_of_several_turns_trains_on_what_the_assistant_says(tmp_path: Path) -> None:
    assert load(tmp_path, {"prompt": [USER], "completion": [ASSISTANT, USER, ASSISTANT]}) == [
        {"prompt": [USER], "completion": [ASSISTANT]},
        {"prompt": [USER, ASSISTANT, USER], "completion": [ASSISTANT]},
    ]


CALL = [{"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}]


@pytest.mark.parametrize(
    "turn",
    [
        {"content": "", "tool_calls": CALL},
        {"content": None, "tool_calls": CALL},
        {"content": "I add.", "tool_calls": CALL},
        {"content": "I add.", "function_call": CALL[0]["function"]},
        {"content": "5", "name": "adder"},
        {"content": "5", "reasoning_content": "2 + 3"},
        {"content": "5", "thinking": "2 + 3"},
        {"content": "5", "role": "observation"},
        {"content": ""},
        {"content": [{"type": "text", "text": "a"}, {"type": "image"}]},
        {"content": []},
        {"content": [{"type": "text"}]},
    ],
)
def test_what_the_model_would_not_see_of_a_message_names_its_row(tmp_path: Path, turn: dict[str, Any]) -> None:
    row = {"messages": [USER, {"role": "assistant", **turn}]}
    message = refuse_rows(tmp_path, {"messages": [USER, ASSISTANT]}, row)
    assert "row 2 of" in message
    if len(turn) > 1 and "role" not in turn:
        assert repr(list(turn)[1]) in message
        assert "row 1 of" in refuse_rows(tmp_path, {"prompt": row["messages"], "completion": [ASSISTANT]})
        assert "row 1 of" in refuse_rows(tmp_path, {"prompt": [USER], "completion": row["messages"][1:]})


def test_empty_keys_of_a_message_and_text_in_parts_pass(tmp_path: Path) -> None:
    parts = [{"type": "text", "text": "He"}, {"type": "text", "text": "llo"}]
    answer = {"role": "assistant", "content": parts, "tool_calls": None, "name": "", "annotations": []}
    assert load(tmp_path, {"messages": [USER, answer]}) == [{"prompt": [USER], "completion": [ASSISTANT]}]


@pytest.mark.parametrize(
    "columns",
    [{"tools": CALL}, {"tools": "[{}]"}, {"chat_template_kwargs": {"x": 1}}, {"images": [1]}, {"history": []}],
)
def test_columns_of_a_conversation_that_the_model_would_not_see_are_refused(
    tmp_path: Path, columns: dict[str, Any]
) -> None:
    [name] = columns
    if name == "history":
        row = {"instruction": "Hi", "output": "Hello", "history": [["a", "b"]]}
        assert "row 1 of" in refuse_rows(tmp_path, row)
        assert load(tmp_path, {**row, **columns}) == [{"prompt": [USER], "completion": [ASSISTANT]}]
        return
    for row in ({"messages": [USER, ASSISTANT]}, {"prompt": [USER], "completion": [ASSISTANT]}):
        assert f"{name!r} is not read" in refuse_rows(tmp_path, {**row, **columns})
        assert load(tmp_path, {**row, name: None}) == [{"prompt": [USER], "completion": [ASSISTANT]}]


def test_the_column_system_comes_first_in_every_conversation(tmp_path: Path) -> None:
    expected = [{"prompt": [{"role": "system", "content": "S"}, USER], "completion": [ASSISTANT]}]
    assert load(tmp_path, {"messages": [USER, ASSISTANT], "system": "S"}) == expected
    assert load(tmp_path, {"instruction": "Hi", "output": "Hello", "system": "S"}) == expected
    assert "system" in refuse_rows(tmp_path, {"prompt": [USER], "completion": [ASSISTANT], "system": "S"})
    messages = [{"role": "system", "content": "T"}, USER, ASSISTANT]
    assert "system" in refuse_rows(tmp_path, {"messages": messages, "system": "S"})


def test_a_message_that_the_chat_template_leaves_out_is_named() -> None:
    tokenizer = byte_tokenizer()
    rows = [{"prompt": [USER, ASSISTANT, {"role": "tool", "content": "5"}], "completion": [ASSISTANT]}]
    prompt_too_long(rows, tokenizer, 100)
    tokenizer.chat_template = "{% for m in messages if m.role != 'tool' %}[{{ m.role }}]{{ m.content }}{% endfor %}"
    with pytest.raises(InputError, match=r"row 1.*messages\.2\.content.*here is tool"):
        prompt_too_long(rows, tokenizer, 100)
    tokenizer.chat_template = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(InputError, match=r"row 1.*refuses the messages: roles must alternate"):
        prompt_too_long(rows, tokenizer, None)


def test_weights_over_several_turns_are_refused(tmp_path: Path) -> None:
    row = {"messages": [USER, ASSISTANT, USER, ASSISTANT], "weights": [1.0]}
    assert "several assistant turns" in refuse_rows(tmp_path, row)


def test_a_prompt_that_fills_the_length_is_named(tokenizer: PreTrainedTokenizerFast) -> None:
    rows = [{"prompt": "abc", "completion": "d"}, {"prompt": "abcdef", "completion": "g"}]
    prompt_too_long(rows, tokenizer, 7)
    prompt_too_long(rows, tokenizer, None)
    prompt_too_long([{"text": "long enough"}], tokenizer, 2)
    with pytest.raises(InputError, match=r"row 2, 'abcdef'.*6 tokens.*max_length=6"):
        prompt_too_long(rows, tokenizer, 6)


def test_a_conversation_is_measured_through_the_template(tokenizer: PreTrainedTokenizerFast) -> None:
    length = len(prompt_tokens([USER], tokenizer))
    assert length == len("[user]Hi") + 1 + len("[assistant]")
    rows = [{"prompt": [USER], "completion": [ASSISTANT]}]
    prompt_too_long(rows, tokenizer, length + 1)
    with pytest.raises(InputError, match="row 1"):
        prompt_too_long(rows, tokenizer, length)


def test_conversations_need_a_chat_template(tokenizer: PreTrainedTokenizerFast) -> None:
    bare = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer, eos_token="<eos>")
    with pytest.raises(InputError, match="no chat template"):
        prompt_too_long([{"prompt": [USER], "completion": [ASSISTANT]}], bare, 100)


def test_the_fingerprint_is_of_the_rows_alone(tmp_path: Path) -> None:
    loaded = load_rows(write(tmp_path / "a.parquet", PAIRS))
    assert data_fingerprint(loaded) == data_fingerprint(PAIRS)
    assert data_fingerprint([dict(reversed(row.items())) for row in PAIRS]) == data_fingerprint(PAIRS)
    assert data_fingerprint(PAIRS[::-1]) != data_fingerprint(PAIRS)


def test_the_general_sets_are_varied_and_short() -> None:
    for lines, count, length in ((general_prompts(), 150, 100), (general_text(), 60, 250)):
        assert len(lines) >= count and len(set(lines)) == len(lines)
        assert all(0 < len(line) <= length and line == line.strip() for line in lines)
    assert not any("capital of" in line.lower() for line in general_prompts() + general_text())  # a probe asks that
