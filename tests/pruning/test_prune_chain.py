from __future__ import annotations

import math
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

import graftlm.pruning
from graftlm.errors import InputError
from graftlm.pruning import PrunedChain, prune_chain
from graftlm.pruning.encoding import encode_chain, protected_tokens, word_units
from tests.conftest import tiny_model

CHAIN = "Then 12 + 3 = 15 apples, so 15."
AWKWARD = "so <eos> é 🎉 <|im_end|>\n\n ​end "
BASELINES = ("random", "surprisal", "attention", "truncation")


def pruned_by(tokenizer: Any, chain: str = CHAIN, mode: str = "surprisal", **options: Any) -> PrunedChain:
    return prune_chain(tiny_model(initializer_range=0.3), tokenizer, "How many?\n", chain, "\n15", mode=mode, **options)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["exact", "screened", *BASELINES])
@pytest.mark.parametrize("granularity", ["token", "word"])
def test_every_token_has_its_step(tokenizer: PreTrainedTokenizerBase, mode: str, granularity: str) -> None:
    pruned = pruned_by(tokenizer, mode=mode, granularity=granularity)
    count = len(CHAIN)
    steps = count if granularity == "token" else len(CHAIN.split())
    assert sorted(pruned.order) == list(range(count))
    assert sorted(set(pruned.ranks)) == list(range(1, steps + 1))
    assert [pruned.ranks[place] for place in pruned.order] == sorted(pruned.ranks)
    assert len(pruned.log_likelihoods) == steps + 1
    assert all(math.isfinite(value) for value in pruned.log_likelihoods)
    assert "".join(token.text for token in pruned.tokens) == CHAIN


@pytest.mark.parametrize("chain", [CHAIN, AWKWARD, " ", "🎉", "  two  words  "])
@pytest.mark.parametrize("granularity", ["token", "word"])
def test_all_tokens_kept_are_the_chain_byte_for_byte(
    tokenizer: PreTrainedTokenizerBase, chain: str, granularity: str
) -> None:
    assert pruned_by(tokenizer, chain, granularity=granularity).text(1.0) == chain


def test_the_share_that_is_kept_is_rounded_up(tokenizer: PreTrainedTokenizerBase) -> None:
    pruned = pruned_by(tokenizer, "x" * 100, mode="random")
    assert [len(pruned.text(keep)) for keep in (1e-9, 0.01, 0.07, 0.071, 0.5, 0.991, 1.0)] == [1, 1, 7, 8, 50, 100, 100]
    assert len(pruned_by(tokenizer, CHAIN).text(0.5)) == math.ceil(len(CHAIN) / 2)
    kept = [place for place in range(100) if pruned.ranks[place] > 60]
    assert len(kept) == 40 and kept == sorted(pruned.order[60:])


@pytest.mark.parametrize("keep", [0.0, -0.1, 1.01, math.nan])
def test_a_share_outside_zero_to_one_is_refused(tokenizer: PreTrainedTokenizerBase, keep: float) -> None:
    with pytest.raises(InputError, match=r"keep is .*: give a share above 0 and at most 1"):
        pruned_by(tokenizer).text(keep)


@pytest.mark.parametrize("seed", range(5))
def test_no_character_is_cut_in_half_and_none_is_changed(tokenizer: PreTrainedTokenizerBase, seed: int) -> None:
    pruned = pruned_by(tokenizer, AWKWARD, mode="random", seed=seed)
    for kept in range(1, len(pruned.tokens) + 1):
        text = pruned.text(kept / len(pruned.tokens))
        ranks = iter(pruned.ranks)  # the tokenizer's tokens are bytes
        highest = [max(next(ranks) for _ in character.encode()) for character in AWKWARD]
        gone = len(pruned.tokens) - kept
        assert text == "".join(c for c, rank in zip(AWKWARD, highest, strict=True) if rank > gone)


def test_text_that_looks_like_a_special_token_is_text(tokenizer: PreTrainedTokenizerBase) -> None:
    encoding = encode_chain(tokenizer, "Q", "a<eos>b", "<eos>")
    assert [token.text for token in encoding.chain] == list("a<eos>b")
    assert tokenizer.convert_ids_to_tokens(encoding.answer) == list("<eos>")
    assert tokenizer("<eos>")["input_ids"] == [tokenizer.eos_token_id]  # left as it was


def test_a_question_is_a_prompt_or_messages(tokenizer: PreTrainedTokenizerBase) -> None:
    assert encode_chain(tokenizer, "Q<eos>", "c", "a").question == tokenizer("Q<eos>")["input_ids"]
    chat = encode_chain(tokenizer, [{"role": "user", "content": "Q"}], "c", "a")
    text = "[user]Q<eos>[assistant]"
    assert chat.question == tokenizer(text)["input_ids"]


def abc_tokenizer() -> PreTrainedTokenizerFast:
    """Three letters, two of whose pairs merge; drops what it does not know."""
    vocabulary = {"a": 0, "b": 1, "c": 2, "ab": 3, "bc": 4}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.BPE(vocab=vocabulary, merges=[("a", "b"), ("b", "c")]))
    )


def test_a_tokenizer_that_changes_the_text_is_refused(tokenizer: PreTrainedTokenizerBase) -> None:
    lower = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(tokenizer.backend_tokenizer.to_str()))
    lower.backend_tokenizer.normalizer = normalizers.Lowercase()
    assert encode_chain(lower, "q", "so", "a").chain
    with pytest.raises(InputError, match="does not give the chain 'So' back"):
        encode_chain(lower, "q", "So", "a")
    with pytest.raises(InputError, match="does not give the chain 'axb' back"):
        encode_chain(abc_tokenizer(), "a", "axb", "b")
    with pytest.raises(InputError, match="does not give the answer 'xc' back"):
        encode_chain(abc_tokenizer(), "a", "ab", "xc")


@pytest.mark.parametrize("splits", [[], [pre_tokenizers.WhitespaceSplit()]], ids=["with spaces", "without spaces"])
def test_space_belongs_to_the_token_after_it_whatever_its_offsets_say(splits: list[Any]) -> None:
    words = Tokenizer(models.WordLevel({"▁so": 0, "▁5": 1, "▁is": 2, "?": 3}, unk_token="?"))
    words.pre_tokenizer = pre_tokenizers.Sequence([*splits, pre_tokenizers.Metaspace()])
    words.decoder = decoders.Metaspace()
    encoding = encode_chain(PreTrainedTokenizerFast(tokenizer_object=words), "so", " 5 is", " so")
    assert [token.text for token in encoding.chain] == [" 5", " is"]
    with pytest.raises(InputError, match="does not give the chain ' 5  is' back"):
        encode_chain(PreTrainedTokenizerFast(tokenizer_object=words), "so", " 5  is", " so")


def test_a_token_across_a_boundary_is_not_used() -> None:
    whole = encode_chain(abc_tokenizer(), "c", "ab", "c")
    assert (whole.question, [token.id for token in whole.chain], whole.answer) == ([2], [3], [2])
    apart = encode_chain(abc_tokenizer(), "a", "b", "c")  # joined they are ab c
    assert (apart.question, [token.id for token in apart.chain], apart.answer) == ([0], [1], [2])


def test_words_take_the_space_before_them(tokenizer: PreTrainedTokenizerBase) -> None:
    for chain, expected in {
        "So it is": ["So", " it", " is"],
        "  So\n\nit ": ["  So", "\n\nit "],
        "é à": ["é", " à"],
        " ": [" "],
    }.items():
        tokens = encode_chain(tokenizer, "Q", chain, "a").chain
        words = [chain[tokens[unit[0]].start : tokens[unit[-1]].stop] for unit in word_units(tokens)]
        assert words == expected


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["exact", "screened", "random", "truncation"])
@pytest.mark.parametrize("granularity", ["token", "word"])
def test_what_is_protected_goes_last(tokenizer: PreTrainedTokenizerBase, mode: str, granularity: str) -> None:
    for protect, texts in {
        "numbers": ["12", "3", "15", "15"],
        "answer": ["15", "15"],
        r"app\w+": ["apples"],
        ("answer", "Then"): ["Then", "15", "15"],
    }.items():
        pruned = pruned_by(tokenizer, mode=mode, granularity=granularity, protect=protect)
        last = pruned.order[len(CHAIN) - sum(map(len, texts)) :]
        if granularity == "token":
            assert "".join(CHAIN[place] for place in sorted(last)) == "".join(texts)
        else:
            assert all(any(text in word for text in texts) for word in pruned.text(len(texts) / len(CHAIN)).split())


def test_a_protected_answer_is_no_part_of_another_number(tokenizer: PreTrainedTokenizerBase) -> None:
    chain = "5 of 15, 5.2, 2,5 or 50: 5, and 5."
    tokens = encode_chain(tokenizer, "Q", chain, "\n#### 5").chain
    assert sorted(protected_tokens(tokens, chain, "\n#### 5", ["answer"])) == [0, 25, len(chain) - 2]


def test_baselines_order_by_what_they_say(tokenizer: PreTrainedTokenizerBase) -> None:
    assert pruned_by(tokenizer, mode="truncation").order == list(range(len(CHAIN)))[::-1]
    assert pruned_by(tokenizer, mode="random", seed=1).order == pruned_by(tokenizer, mode="random", seed=1).order
    assert pruned_by(tokenizer, mode="random", seed=1).order != pruned_by(tokenizer, mode="random", seed=2).order


def test_the_model_is_left_as_it_was(tokenizer: PreTrainedTokenizerBase) -> None:
    model = tiny_model().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for mode in ("exact", *BASELINES):
        assert prune_chain(model, tokenizer, "Q", "chain", "a", mode=mode).log_likelihoods
    assert model.training and model.config._attn_implementation == "sdpa"
    assert all(value.equal(before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"chain": ""}, "the chain is empty: give at least one token"),
        ({"answer": ""}, "the answer is empty: give at least one token"),
        ({"question": ""}, "the prompt '' has no tokens: give at least one word"),
        ({"chain": "x" * 300}, "question, chain and answer have 302 tokens, the model 256 positions: shorten them"),
        ({"mode": "greedy"}, "mode is 'greedy', but it is one of exact, screened, surrogate"),
        ({"objective": "both"}, "objective is 'both', but it is one of joint, answer"),
        ({"granularity": "line"}, "granularity is 'line', but it is one of token, word"),
        ({"batch_tokens": 0}, "batch-tokens is 0, but it must be at least 1"),
        ({"protect": "("}, r"protect: '\(' is no regular expression \(missing"),
        ({"mode": "llmlingua2", "llmlingua_model": "/nowhere"}, "mode llmlingua2 needs the model /nowhere"),
    ],
)
def test_bad_input_is_one_line(tokenizer: PreTrainedTokenizerBase, options: dict[str, Any], line: str) -> None:
    given = {"question": "Q", "chain": "c", "answer": "a", **options}
    with pytest.raises(InputError, match=line) as caught:
        prune_chain(tiny_model(), tokenizer, **given)
    assert "\n" not in str(caught.value)


def test_messages_need_a_template(tokenizer: PreTrainedTokenizerBase) -> None:
    bare = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer)
    with pytest.raises(InputError, match="the tokenizer has no chat template"):
        encode_chain(bare, [{"role": "user", "content": "Q"}], "c", "a")


def test_the_names_of_the_package_exist() -> None:
    assert all(getattr(graftlm.pruning, name) for name in graftlm.pruning.__all__)
