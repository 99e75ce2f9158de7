from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForTokenClassification,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    XLMRobertaConfig,
)

from graftlm.pruning import prune_chain
from graftlm.pruning.baselines import attention_scores, keep_probabilities, order_of
from graftlm.pruning.encoding import encode_chain
from tests.conftest import ARCHITECTURES, VOCABULARY, tiny_model

QUESTION, CHAIN, ANSWER = "How?", "2+3=5, so", " 5."


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_attention_is_summed_over_layers_heads_and_queries(
    architecture: str, tokenizer: PreTrainedTokenizerBase
) -> None:
    model = tiny_model(architecture, initializer_range=0.3)
    encoding = encode_chain(tokenizer, QUESTION, CHAIN, ANSWER)
    found = attention_scores(model, encoding)
    model.set_attn_implementation("eager")
    ids = tokenizer(QUESTION + CHAIN + ANSWER, return_tensors="pt")["input_ids"]
    attentions = model(ids, output_attentions=True).attentions
    expected = sum(layer[0].sum(dim=(0, 1)) for layer in attentions)[4:13]
    assert found == pytest.approx(expected.tolist(), rel=1e-5)


def test_the_least_surprising_goes_first(tokenizer: PreTrainedTokenizerBase) -> None:
    model = tiny_model(initializer_range=0.3)
    ids = tokenizer(QUESTION + CHAIN + ANSWER, return_tensors="pt")["input_ids"]
    log_probs = model(ids).logits[0].log_softmax(-1).detach()
    surprisal = [-float(log_probs[place - 1, ids[0, place]]) for place in range(4, 13)]
    for objective in ("joint", "answer"):
        pruned = prune_chain(model, tokenizer, QUESTION, CHAIN, ANSWER, objective=objective, mode="surprisal")
        assert pruned.order == sorted(range(9), key=lambda place: surprisal[place])


def test_equal_scores_go_by_position_and_units_by_their_mean() -> None:
    assert order_of([1.0, 1.0, 0.0, 1.0], [[0], [1], [2], [3]], set()) == [2, 0, 1, 3]
    assert order_of([3.0, 1.0, 0.5, 4.0], [[0, 1], [2], [3]], {1}) == [0, 2, 1]


@pytest.fixture
def classifier(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> Path:
    """A tiny random LLMLingua-2."""
    torch.manual_seed(0)
    config = XLMRobertaConfig(
        vocab_size=VOCABULARY, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=34, num_labels=2, initializer_range=1.0, pad_token_id=1,
    )  # fmt: skip
    AutoModelForTokenClassification.from_config(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    return tmp_path


def test_llmlingua2_keeps_what_its_classifier_would(tokenizer: PreTrainedTokenizerBase, classifier: Path) -> None:
    model: Any = AutoModelForTokenClassification.from_pretrained(classifier).eval()
    chain = "2+3=5, é so it is five, not six as they said."  # longer than the classifier's window
    encoding = encode_chain(tokenizer, QUESTION, chain, ANSWER)
    found = keep_probabilities(encoding, chain, str(classifier))
    ids = tokenizer(chain, return_tensors="pt")["input_ids"]
    windows = [model(part).logits[0].softmax(-1)[:, 1] for part in ids.split(32, dim=1)]
    expected = torch.cat(windows).tolist()
    expected[7:9] = [expected[8]] * 2  # one character
    assert found == pytest.approx(expected, rel=1e-5)
    pruned = prune_chain(
        tiny_model(), tokenizer, QUESTION, chain, ANSWER, mode="llmlingua2", llmlingua_model=str(classifier)
    )
    assert pruned.order == sorted(range(len(found)), key=lambda place: found[place])


def test_space_that_the_classifier_does_not_read_goes_with_the_next_word(
    tokenizer: PreTrainedTokenizerBase, classifier: Path
) -> None:
    chain = "so 5  is\n"
    pieces = [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()]  # XLM-RoBERTa's: no token has the spaces
    words = Tokenizer(models.WordLevel({"▁so": 5, "▁5": 6, "▁is": 7}, unk_token="▁so"))
    words.pre_tokenizer = pre_tokenizers.Sequence(pieces)
    PreTrainedTokenizerFast(tokenizer_object=words, pad_token="▁so").save_pretrained(classifier)
    model: Any = AutoModelForTokenClassification.from_pretrained(classifier).eval()
    so, five, last = model(torch.tensor([[5, 6, 7]])).logits[0].softmax(-1)[:, 1].tolist()
    found = keep_probabilities(encode_chain(tokenizer, QUESTION, chain, ANSWER), chain, str(classifier))
    assert found == pytest.approx([so, so, five, five, last, last, last, last, last], rel=1e-5)
