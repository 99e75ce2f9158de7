"""A model's own generation config: what acts, what is left out, and what ends the server's start."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerFast

from graftlm.errors import InputError
from graftlm.serve import ServeSettings, create_app
from graftlm.serve.own_settings import REPLACED, TAKEN, WITHOUT_EFFECT, left_out
from graftlm.serve.protocol import CompletionRequest
from graftlm.serve.sequence import Piece
from graftlm.serve.server import try_out
from tests.conftest import VOCABULARY, tiny_model
from tests.serve.conftest import NAME, ascii_model, greedy
from tests.test_cli import call, saved

PROMPTS = ["Once", "A longer prompt"]


def written(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, *, anew: bool = True) -> list[str]:
    """What the server's engine writes after each of PROMPTS in one batch, entered anew at each token or once."""
    state = create_app(model, tokenizer, NAME).state
    request = CompletionRequest(model=NAME, prompt=PROMPTS, max_tokens=12, temperature=0)
    texts = ["", ""]

    def deliver(piece: Piece) -> None:
        texts[piece.index] += piece.text

    sequences = state.prompts.sequences(request, state.prompts.encode(request), deliver)
    state.engine._should_leave = lambda sequences, pace: anew
    while live := [each for each in sequences if not each.done]:
        state.engine.write(live)
    return texts


@pytest.fixture
def model(tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
    return ascii_model(tokenizer)


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        {"num_beams": 3, "num_return_sequences": 2},
        {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.5, "length_penalty": 2.0, "early_stopping": True},
        {"prompt_lookup_num_tokens": 3, "max_matching_ngram_size": 2},
        {"penalty_alpha": 0.6, "top_k": 4},
        {"dola_layers": "low"},
        {"force_words_ids": [[5]], "num_beams": 2},
        {"assistant_early_exit": 1},
        {"use_mtp": True},
        {"is_assistant": True, "num_assistant_tokens": 3},
        {"guidance_scale": 3.0},
        {"watermarking_config": {"bias": 9.0}},
        {"renormalize_logits": True},
        {"token_healing": True},
        {"max_time": 1e-9},
        {"max_length": 3, "min_length": 200, "min_new_tokens": 100},
        {"forced_bos_token_id": 0, "forced_eos_token_id": 0},
        {"begin_suppress_tokens": [*range(40, 120)]},
        {"exponential_decay_length_penalty": (1, 9.0)},
        {"encoder_repetition_penalty": 3.0, "encoder_no_repeat_ngram_size": 1},
        {"output_scores": True, "output_attentions": True, "return_dict_in_generate": True},
        {"do_sample": True, "temperature": 9.0, "min_p": 0.5, "typical_p": 0.1, "epsilon_cutoff": 0.1, "top_h": 0.5},
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore")
def test_what_the_server_cannot_honour_is_left_out_with_a_word_and_no_text_is_changed(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, settings: dict[str, Any], capsys: Any
) -> None:
    expected = [greedy(model, tokenizer, tokenizer(prompt)["input_ids"], 12) for prompt in PROMPTS]
    meant = vars(GenerationConfig(**settings))
    vars(model.generation_config).update({name: meant[name] for name in settings})
    before = model.generation_config.to_dict()
    assert written(model, tokenizer) == written(model, tokenizer, anew=False) == expected
    assert model.generation_config.to_dict() == before
    err = capsys.readouterr().err
    for name, value in settings.items():
        said = name not in REPLACED | WITHOUT_EFFECT
        assert (f"{name}=" in err) == said, (name, value)
    assert err.count("\n") == (2 if err else 0)  # one a server


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        {"repetition_penalty": 1.5},
        {"no_repeat_ngram_size": 2},
        {"bad_words_ids": [[65], [66, 67]]},
        {"sequence_bias": [[[70], 9.0]]},
        {"use_cache": False},
        {"remove_invalid_values": True},
    ],
    ids=str,
)
def test_what_acts_on_each_row_alone_acts_as_in_generate(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, settings: dict[str, Any], capsys: Any
) -> None:
    model.generation_config.update(**settings)
    expected = [greedy(model, tokenizer, tokenizer(prompt)["input_ids"], 12) for prompt in PROMPTS]
    assert written(model, tokenizer) == written(model, tokenizer, anew=False) == expected
    assert capsys.readouterr().err == ""


def test_every_setting_of_transformers_is_in_one_group() -> None:
    groups = [TAKEN, REPLACED, WITHOUT_EFFECT]
    assert sum(map(len, groups)) == len(frozenset().union(*groups))
    assert frozenset().union(*groups) <= vars(GenerationConfig()).keys() | {"max_matching_ngram_size"}
    assert left_out(GenerationConfig()) == {}
    neutral = GenerationConfig(num_beams=1, num_return_sequences=1, guidance_scale=1.0, min_length=0, use_mtp=False)
    assert left_out(neutral) == {}


@pytest.mark.parametrize("as_list", [False, True])
def test_the_models_own_stop_strings_end_a_text_besides_the_requests(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, as_list: bool
) -> None:
    full = written(model, tokenizer)[0]
    stop = full[5:7]
    model.generation_config.stop_strings = [stop, "nowhere"] if as_list else stop
    assert written(model, tokenizer)[0] == full[: full.index(stop)]
    request = CompletionRequest(model=NAME, prompt="x", stop=["a", "b"])
    prompts = create_app(model, tokenizer, NAME).state.prompts
    (sequence,) = prompts.sequences(request, prompts.encode(request), lambda piece: None)
    assert sequence.stop[:3] == ("a", "b", stop)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda config: setattr(config, "bad_words_ids", [[VOCABULARY + 5]]), "the model cannot write"),
        (lambda config: setattr(config, "repetition_penalty", -1.0), "the model cannot write"),
        (lambda config: setattr(config, "cache_implementation", "nonsense"), "the model cannot write"),
        (lambda config: setattr(config, "stop_strings", [1]), "stop_strings"),
    ],
)
def test_a_model_that_cannot_write_is_found_at_the_start(
    tokenizer: PreTrainedTokenizerFast, damage: Callable[[Any], None], message: str
) -> None:
    model = tiny_model()
    damage(model.generation_config)
    with pytest.raises(InputError, match=message) as caught:
        try_out(model, create_app(model, tokenizer, NAME).state.prompts, ServeSettings())
    assert "\n" not in str(caught.value)


def test_it_is_one_line_and_status_2_at_the_command_line(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = saved(tmp_path / "model", tiny_model(), tokenizer)
    (Path(folder) / "generation_config.json").write_text('{"eos_token_id": 257, "bad_words_ids": [[999]]}')
    assert call("serve", folder, "--port", "0") == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("graftlm: the model cannot write, see its generation_config.json: ")
