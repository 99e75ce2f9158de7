from __future__ import annotations

from typing import Any

import pytest
from transformers import PreTrainedTokenizerBase

from graftlm.errors import InputError
from graftlm.pruning.importance import importance
from graftlm.pruning.solutions import Solution, bare_answer, find_answer, solution_of
from graftlm.tuning.token_weights import align_token_weights

USER = [{"role": "user", "content": "How many?"}]
ASSISTANT = {"role": "assistant", "content": "2 + 2 is 4. The answer is 4"}
CUT = Solution(question=USER, chain="2 + 2 is 4.", answer=" The answer is 4")


@pytest.mark.parametrize(
    ("row", "chat", "solution"),
    [
        ({"question": "How many?", "answer": "2 + 2 is 4.\n#### 4"}, False,
         Solution(question="How many?\n", chain="2 + 2 is 4.", answer="\n#### 4")),
        ({"question": "How many?", "answer": "2 + 2 is 4.\n#### 4"}, True,
         Solution(question=USER, chain="2 + 2 is 4.", answer="\n#### 4")),
        ({"question": "How many?", "answer": "2 + 2 is 4.\n#### 4", "completion": None, "messages": None}, True,
         Solution(question=USER, chain="2 + 2 is 4.", answer="\n#### 4")),
        ({"question": "How many?", "chain": "2 + 2", "answer": 4.0}, False,
         Solution(question="How many?\n", chain="2 + 2", answer="\n4")),
        ({"prompt": "How many? ", "chain": "2 + 2", "answer": " is 4"}, True,
         Solution(question="How many? ", chain="2 + 2", answer=" is 4")),
        ({"messages": USER, "chain": "2 + 2 is 4.", "answer": " The answer is 4"}, True, CUT),
        ({"prompt": USER, "completion": [ASSISTANT]}, True, CUT),
        ({"messages": [*USER, ASSISTANT]}, True, CUT),
        ({"conversations": [{"from": "human", "value": "How many?"}, {"from": "gpt", "value": ASSISTANT["content"]}]},
         True, CUT),
        ({"instruction": "How many?", "output": ASSISTANT["content"]}, True, CUT),
        ({"prompt": "Q:", "completion": " <think>2 + 2</think>\n\n4"}, True,
         Solution(question="Q:", chain=" <think>2 + 2", answer="</think>\n\n4")),
    ],
)  # fmt: skip
def test_every_form_gives_question_chain_and_answer(row: dict[str, Any], chat: bool, solution: Solution) -> None:
    assert solution_of(row, "row 1", chat=chat) == solution


def test_of_several_turns_the_last_is_pruned() -> None:
    turns = [*USER, {"role": "assistant", "content": "Four."}, {"role": "user", "content": "Why?"}, ASSISTANT]
    found = solution_of({"messages": turns}, "row 1", chat=True)
    assert found.question == turns[:3] and found.chain == CUT.chain


@pytest.mark.parametrize(
    ("text", "answer_start", "rest"),
    [
        ("so the answer is 3? No: the answer is 4", None, " the answer is 4"),
        ("Answer: x</think> so\n#### 7", None, "</think> so\n#### 7"),
        ("thus $\\boxed{4}$", None, " $\\boxed{4}$"),
        ("thus 4 = four", "= f", " = four"),
        ("thus 4. ANSWER: 4", "(?i)answer:", " ANSWER: 4"),
        ("thus **Answer:** 4", None, " **Answer:** 4"),
        ("so it is." + " " * 50_000 + "The answer is 4", None, " " * 50_000 + "The answer is 4"),
    ],
)
def test_the_answer_starts_at_the_last_match_of_the_first_pattern(
    text: str, answer_start: str | None, rest: str
) -> None:
    start = find_answer(text, answer_start)
    assert start is not None and text[start:] == rest


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "Q", "completion": "just words"}, "row 3: no answer is found in the completion; say where"),
        ({"question": "Q", "answer": "#### 4"}, "row 3: the chain is empty"),
        ({"question": "Q", "chain": "c", "answer": ""}, "row 3: the answer is empty"),
        ({"question": "", "chain": "c", "answer": "4"}, "row 3: the question is empty"),
        ({"chain": "c", "answer": "4"}, "row 3 has no column 'question'"),
        ({"question": "Q", "chain": 5, "answer": "4"}, "row 3: column 'chain' is 5"),
        ({"text": "all in one"}, "row 3 is text without a question"),
        ({"foo": 1}, "row 3 has the columns foo"),
    ],
)
def test_a_row_without_one_of_them_is_refused_by_its_place(row: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        solution_of(row, "row 3")


@pytest.mark.parametrize(
    ("answer", "bare"),
    [("\n#### 5", "5"), (" The answer is 5.", "5"), ("</think>\n\n**Answer:** 1,250", "1,250"),
     ("$\\boxed{x+1}$", "x+1"), ("Monday", "Monday"), ("the final answer is: no", "no")],
)  # fmt: skip
def test_an_answer_without_what_leads_to_it(answer: str, bare: str) -> None:
    assert bare_answer(answer) == bare


def test_a_shorter_chain_goes_back_into_a_row() -> None:
    assert CUT.row(" is 4.") == {"prompt": USER, "completion": [{**ASSISTANT, "content": "is 4. The answer is 4"}]}
    plain = Solution(question="Q: ", chain=" so 4", answer="\n4")
    assert plain.row(" 4", "<eos>0.5<eos>") == {"prompt": "Q: <eos>0.5<eos>", "completion": " 4\n4"}
    marked = CUT.row("4.", "<eos>0.5<eos>")["prompt"]
    assert marked == [{"role": "user", "content": "How many?<eos>0.5<eos>"}] and USER[0]["content"] == "How many?"


@pytest.mark.parametrize("chat", [False, True])
def test_a_completions_tokens_get_the_ranks_of_their_characters(tokenizer: PreTrainedTokenizerBase, chat: bool) -> None:
    question: Any = USER if chat else "Q: "
    row = Solution(question=question, chain="é+2", answer=" 4").row("é+2")
    spans, ranks = [(0, 1), (0, 1), (1, 2), (2, 3)], [2, 3, 1, 4]  # é has two bytes, each a token of its own
    found = importance(tokenizer, row, spans, ranks)
    template = [1.0] if chat else []  # <eos>
    assert found == [0.75, 0.75, 0.25, 1.0, 1.0, 1.0, *template]


@pytest.mark.parametrize("chat", [False, True])
def test_importance_has_a_number_for_each_token_that_is_trained_on(
    tokenizer: PreTrainedTokenizerBase, chat: bool
) -> None:
    from datasets import Dataset

    question: Any = USER if chat else "Q: "
    row = Solution(question=question, chain="2+2", answer=" 4").row("2+2")
    weights = importance(tokenizer, row, [(0, 1), (1, 2), (2, 3)], [1, 2, 3])
    if chat:
        prompt = tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True, return_dict=True)["input_ids"]
        whole = tokenizer.apply_chat_template([*row["prompt"], *row["completion"]], return_dict=True)["input_ids"]
    else:
        prompt = tokenizer(row["prompt"])["input_ids"]
        whole = [*tokenizer(row["prompt"] + row["completion"])["input_ids"], tokenizer.eos_token_id]
    labels = [-100] * len(prompt) + list(whole[len(prompt) :])
    rows = Dataset.from_list([{"input_ids": whole, "labels": labels, "importance": weights}])
    aligned = align_token_weights(rows, 64)[0]["token_weights"]
    assert aligned == [0.0] * len(prompt) + [1 / 3, 2 / 3, 1.0, 1.0, 1.0, 1.0]
