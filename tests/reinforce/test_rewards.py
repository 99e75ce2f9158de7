from __future__ import annotations

import gc
import json
import math
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
from datasets import Dataset

from graftlm.errors import InputError
from graftlm.reinforce.built_in_rewards import REWARDS, last_number, specs
from graftlm.reinforce.built_in_rewards import reward as decorate
from graftlm.reinforce.rewards import Reward, reward_function
from graftlm.tasks.reasoning_answers import EVALUATING_DATASETS, harmless_formula, harmless_literal

Own = Callable[[str], str]
Make = Callable[..., Reward]

FAULTS = """
    import os, sys, time

    def fault(word):
        if word == "raise": raise ValueError("two\\nlines")
        if word == "hang": time.sleep(60)
        if word == "exit": sys.exit(3)
        if word == "die": os._exit(3)
        if word == "crash": os.kill(os.getpid(), 11)
        if word == "memory": raise MemoryError
        values = {"none": None, "nan": float("nan"), "inf": float("inf"), "huge": 1e39, "text": "1", "list": [1]}
        return values.get(word, len(word))

    def each(completions, **columns):
        return [fault(word) for word in completions]
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Own]:
    """Writes a module of one's own rewards into the working folder and gives its name."""
    monkeypatch.chdir(tmp_path)
    names = []

    def write(code: str) -> str:
        names.append(f"own_{re.sub('[^a-z0-9]', '_', tmp_path.name.lower())}_{len(names)}")
        (tmp_path / f"{names[-1]}.py").write_text(dedent(code))
        return names[-1]

    yield write
    for name in names:
        sys.modules.pop(name, None)


@pytest.fixture
def make() -> Iterator[Make]:
    """Makes rewards whose processes end with the test."""
    made = []

    def start(spec: Any, **options: Any) -> Reward:
        made.append(reward_function(spec, **options))
        return made[-1]

    yield start
    for reward in made:
        reward.close()


def score(reward: Reward, completions: list[Any], **columns: list[Any]) -> list[float]:
    return reward(prompts=[f"prompt {index}" for index in range(len(completions))], completions=completions, **columns)


def process_id(reward: Reward) -> int:
    assert reward._worker is not None and reward._worker._process.pid is not None
    return reward._worker._process.pid


def is_running(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def wait_until_gone(process: int) -> None:
    for _ in range(100):
        if not is_running(process):
            return
        time.sleep(0.05)
    raise AssertionError(f"process {process} is still running")


# What the built-in rewards compute


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("It is 42.", "42"),
        ("first 7, then 1,234,567.50", "1234567.5"),
        ("x = -5", "-5"),
        ("x = −5", "-5"),
        ("10-5", "5"),  # a difference, not a sign
        ("f(3)-5", "5"),
        ("-$1,000", "-1000"),
        (".5", "0.5"),
        ("1e3", "1000"),
        ("3/4", "0.75"),
        ("(1000,200)", "200"),
        ("**42**", "42"),
        ("50%", "50"),
        ("in 2 parts of H2O", "2"),
    ],
)
def test_the_last_number_is_read_with_sign_commas_decimals_and_fraction(text: str, number: str):
    assert str(last_number(text).normalize()) in (number, str(last_number(number).normalize()))


@pytest.mark.parametrize("text", ["", "none", "H2O", "1/0", "1e99999999999999999999"])
def test_where_there_is_no_number_none_is_read(text: str):
    assert last_number(text) is None


def test_answer_gives_one_for_the_right_last_number_alone(make: Make):
    reward = make("answer")
    completions = ["so 1,200.", "1200 or 7", "no idea", [{"role": "assistant", "content": "It is 1200.0"}]]
    assert score(reward, completions, answer=["1200"] * 4) == [1, 0, 0, 1]
    assert score(reward, ["0.5", "1e999999999999"], answer=[0.5, 3]) == [1, 0]
    assert score(reward, ["7"], answer=["Half of 14.\n#### 7"]) == [1]


def test_an_answer_without_a_number_is_that_rows_failure(make: Make, capsys: pytest.CaptureFixture[str]):
    reward = make("answer")
    assert score(reward, ["7", "7"], answer=["seven", "7"]) == [0, 1]
    assert "'seven' holds no number" in capsys.readouterr().err


@pytest.mark.slow
def test_math_verify_gives_one_for_equal_mathematics(make: Make):
    pytest.importorskip("math_verify")
    completions = [r"so \boxed{\frac{1}{2}}", "The answer is 1,234", r"$x^2+2x+1$", "it is 8", "", r"\boxed{\frac{1}"]
    answers = ["0.5", "1234", "$(x+1)^2$", "7", "7", "7"]
    assert score(make("math-verify"), completions, answer=answers) == [1, 1, 1, 0, 0, 0]


def test_regex_gives_one_where_the_pattern_is_found(make: Make):
    assert score(make(r"regex:<a>\d+:\d</a>"), ["so <a>12:3</a>", "<a></a>"]) == [1, 0]


def test_molecule_formula_gives_one_for_a_molecule_of_that_formula(make: Make, capfd: pytest.CaptureFixture[str]):
    pytest.importorskip("rdkit")
    reward = make("molecule-formula")
    completions = [" CCO\n", "COC is ether", "CCC", "C(C", "", "OCC"]
    assert score(reward, completions, formula=["C2H6O"] * 6) == [1, 1, 0, 0, 0, 1]
    assert score(reward, completions[:1], answer=["C2H6O"]) == [1]
    with pytest.raises(InputError, match="needs the column 'formula' or 'answer'; the rows have none"):
        score(reward, ["C"])
    assert reward.failures == {"exception": 0, "time-out": 0, "not a number": 0}
    assert capfd.readouterr().err == ""


@pytest.mark.slow
def test_reasoning_gym_gives_the_datasets_own_score_of_the_last_answer(make: Make):
    reasoning_gym = pytest.importorskip("reasoning_gym")
    entry = reasoning_gym.create_dataset("basic_arithmetic", size=1, seed=0)[0]
    reward, right = make("reasoning-gym:basic_arithmetic"), entry["answer"]
    completions = [
        f"<answer>no</answer> <answer> {right} </answer>.",
        f" {right}\n",
        "<answer>no</answer>",
        right + "<",
    ]
    rewards = score(reward, completions, entry=[json.dumps(entry)] * 4)
    assert rewards[:3] == [1, 1, 0] and 0 < rewards[3] < 1
    assert reward.__name__ == "basic_arithmetic"


@pytest.mark.slow
def test_what_the_model_wrote_is_never_executed(make: Make, tmp_path: Path):
    reasoning_gym = pytest.importorskip("reasoning_gym")
    pytest.importorskip("math_verify")
    written = tmp_path / "written"
    code = f"__import__('pathlib').Path({str(written)!r}).touch()"
    math = [code, f"${code}$", rf"\boxed{{{code}}}", f"the answer is {code}"]
    assert score(make("math-verify"), math, answer=["1"] * 4) == [0] * 4
    for name in ("countdown", "string_insertion", "simple_integration"):
        entry = reasoning_gym.create_dataset(name, size=1, seed=0)[0]
        completions = [entry["answer"], f"<answer>{code}</answer>", f"<answer>[{code}]</answer>", "oracle_answer"]
        rewards = score(make(f"reasoning-gym:{name}"), completions, entry=[json.dumps(entry, default=str)] * 4)
        assert rewards[0] == 1 and max(rewards[1:]) <= 0.01  # what countdown gives for anything
    assert not written.exists()


def test_every_dataset_that_evaluates_answers_is_held_back():
    pytest.importorskip("reasoning_gym")
    from reasoning_gym.factory import DATASETS

    evaluating = set()
    for name, (dataset, _) in DATASETS.items():
        source = Path(sys.modules[dataset.__module__].__file__).read_text()
        if re.search(r"\b(eval|exec|sympify|parse_expr)\(", source):
            evaluating.add(name)
    # these evaluate their own problems; propositional_logic has a parser of that name
    own = {"basic_arithmetic", "bitwise_arithmetic", "codeio", "number_sorting", "propositional_logic"}
    assert evaluating == set(EVALUATING_DATASETS) | own


@pytest.mark.parametrize(
    "text", ["1+2*3", "x**2/2 + C", "exp(x)*sin(2x) - .5", "(1 + 2)/3", "asinh(x)", "x**-2 + x^10"]
)
def test_mathematics_is_harmless(text: str):
    assert harmless_formula(text)


@pytest.mark.parametrize(
    "text", ["open(x)", "x.n", "Q.even", "eval(chr(9))", "S('x')", "a[0]", "_", "lambda x: 1", "x=1"]
)
def test_other_code_is_no_mathematics(text: str):
    assert not harmless_formula(text) and not harmless_formula(f"1 + {text}")


@pytest.mark.parametrize(
    "text", ["9**9**9", "9 ** 9 ** 9", "9^9^9", "2**999", "((2**99)**99)**99", "9999999!", "x**(9**9)"]
)
def test_mathematics_that_would_take_all_time_or_memory_is_not_evaluated(text: str):
    assert not harmless_formula(text)


def test_only_literals_and_what_does_not_parse_reach_eval():
    assert all(map(harmless_literal, ["[[0, 1], [1, 0]]", "['a']", "-1", "1 2 3", "_ Q\nQ _"]))
    assert not any(map(harmless_literal, ["f()", "a.b", "a", "[x for x in y]", "f'{x}'", "1+1", "-" * 99999 + "1"]))


# What a failing sample does


@pytest.mark.slow
def test_each_failing_sample_counts_as_zero_and_is_logged_and_the_others_keep_their_rewards(
    own: Own, make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    kinds = {"raise": "exception", "exit": "exception", "die": "exception", "crash": "exception", "hang": "time-out"}
    kinds |= {"memory": "exception"}
    kinds |= dict.fromkeys(["none", "nan", "inf", "huge", "text", "list"], "not a number")
    log = tmp_path / "run" / "rewards.jsonl"
    reward = make(f"{own(FAULTS)}:each", seconds=0.4, log=log)
    completions = ["four", *kinds, "sixsix"]
    assert score(reward, completions) == [4, *[0] * len(kinds), 6]
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert {line["completion"]: line["kind"] for line in lines} == kinds
    assert [line["prompt"] for line in lines] == [f"prompt {index + 1}" for index in range(len(kinds))]
    assert all(line["reward"] == "each" and line["time"] and "\n" not in line["message"] for line in lines)
    messages = {line["completion"]: line["message"] for line in lines}
    assert "ValueError: two lines (own_" in messages["raise"] and "line 5)" in messages["raise"]
    assert "exit status 3" in messages["die"] and "SIGSEGV" in messages["crash"]
    assert messages["hang"] == "no value after 0.4 s" and messages["none"] == "the value is None"
    assert reward.failures == {"exception": 5, "time-out": 1, "not a number": 6}
    assert len(capsys.readouterr().err.splitlines()) == 3  # the first of each kind
    assert score(reward, ["three"] * 3) == [5] * 3


def test_a_wrong_number_of_values_blames_the_sample_that_it_comes_from(own: Own, make: Make):
    module = own("""
        def long_only(completions, **columns):
            return [len(word) for word in completions if len(word) > 1]
    """)
    reward = make(f"{module}:long_only")
    assert score(reward, ["aa", "b", "cc"]) == [2, 0, 2]
    assert reward.failures["exception"] == 1


@pytest.mark.slow
def test_a_batch_that_hangs_costs_the_limit_of_the_batch_and_of_its_culprit(own: Own, make: Make):
    reward = make(f"{own(FAULTS)}:each", seconds=0.3)
    assert score(reward, ["one"]) == [3]
    begin = time.monotonic()
    assert score(reward, ["one", "hang", "one", "one"]) == [3, 0, 3, 3]
    assert time.monotonic() - begin < 0.3 * 4**0.5 + 0.3 + 3


@pytest.mark.slow
def test_samples_that_are_too_slow_for_one_call_are_scored_one_by_one_from_then_on(
    own: Own, make: Make, capsys: pytest.CaptureFixture[str]
):
    module = own("""
        import time

        def slow(completions, **columns):
            time.sleep(0.3 * len(completions))
            return [1.0] * len(completions)
    """)
    reward = make(f"{module}:slow", seconds=0.5)
    assert score(reward, ["a"] * 4) == [1] * 4  # one call of four has 1 s and needs 1.2
    process = process_id(reward)
    assert (
        "reward slow: no value after 1 s for 4 samples in one call; from now on one by one" in capsys.readouterr().err
    )
    assert score(reward, ["a"] * 4) == [1] * 4 and process_id(reward) == process
    assert sum(reward.failures.values()) == 0


def test_a_reward_that_cannot_be_loaded_again_counts_as_zero(own: Own, make: Make, tmp_path: Path):
    module = own(f"""
        import os
        from pathlib import Path

        imports = Path({str(tmp_path / "imports")!r})
        imports.write_text((imports.read_text() if imports.exists() else "") + "|")
        if len(imports.read_text()) > 2:  # once in the trainer, once in the process
            raise ImportError("gone")

        def f(completions, **columns):
            return [1.0 if text == "good" else os._exit(3) for text in completions]
    """)
    reward = make(f"{module}:f")
    assert score(reward, ["good", "good"]) == [1, 1]
    assert score(reward, ["good", "bad", "good"]) == [0, 0, 0]
    assert reward.failures["exception"] == 3


def test_a_limit_may_be_as_long_as_one_likes(make: Make):
    assert score(make("answer", seconds=math.inf), ["7"], answer=["7"]) == [1]


@pytest.mark.slow
def test_a_search_that_backtracks_for_ever_is_limited_in_time(make: Make):
    reward = make("regex:(a+)+$", seconds=0.5)
    begin = time.monotonic()
    assert score(reward, ["a" * 40 + "b", "aa"]) == [0, 1]
    assert time.monotonic() - begin < 5
    reward = make("regex:(a|aa)+$", seconds=0.5)  # one that `regex` does not see through
    assert score(reward, ["b", "a" * 40 + "b", "aa"]) == [0, 0, 1]
    assert reward.failures["time-out"] == 1


@pytest.mark.slow
def test_a_hanging_built_in_reward_costs_its_sample_alone(make: Make):
    pytest.importorskip("math_verify")
    reward = make("math-verify", seconds=1.0)
    completions = [r"\boxed{7}", "$9^{9^{9^{9}}}$ 9**9**9**9 = ", r"\boxed{7}"]
    assert score(reward, completions, answer=["7"] * 3) == [1, 0, 1]
    assert reward.failures == {"exception": 0, "time-out": 1, "not a number": 0}


@pytest.mark.slow
def test_a_worker_that_is_killed_is_replaced(own: Own, make: Make):
    module = own("""
        import time

        def slow(completions, **columns):
            time.sleep(0.2 * len(completions))
            return [1.0] * len(completions)
    """)
    reward = make(f"{module}:slow")
    assert score(reward, ["a"]) == [1]
    first = process_id(reward)
    os.kill(first, signal.SIGKILL)  # while it waits
    while reward._worker.alive:
        time.sleep(0.01)
    assert score(reward, ["a"]) == [1] and process_id(reward) != first
    threading.Timer(0.1, os.kill, (process_id(reward), signal.SIGKILL)).start()  # while it scores
    assert score(reward, ["a", "b", "c"]) == [1, 1, 1]
    assert sum(reward.failures.values()) == 0


@pytest.mark.slow
def test_what_a_hanging_reward_started_ends_with_it(own: Own, make: Make, tmp_path: Path):
    module = own("""
        import subprocess

        def hang(completions, **columns):
            child = subprocess.Popen(["sleep", "60"])
            open("child", "w").write(str(child.pid))
            child.wait()
    """)
    assert score(make(f"{module}:hang", seconds=0.5), ["a"]) == [0]
    wait_until_gone(int((tmp_path / "child").read_text()))


# The worker


def test_a_worker_has_neither_torch_nor_the_trainers_stdout_nor_its_ctrl_c(
    own: Own, make: Make, capfd: pytest.CaptureFixture[str]
):
    module = own("""
        import os, sys

        def modules(completions, **columns):
            print("from Python")
            os.system("echo from a program")
            return [float("torch" in sys.modules or "transformers" in sys.modules)] * len(completions)
    """)
    reward = make(f"{module}:modules")
    assert "torch" in sys.modules and score(reward, ["a", "b"]) == [0, 0]
    first = process_id(reward)
    os.kill(first, signal.SIGINT)
    assert score(reward, ["a", "b"]) == [0, 0] and process_id(reward) == first
    output = capfd.readouterr()
    assert output.out == "" and output.err.count("from Python\n") == output.err.count("from a program\n") == 2


@pytest.mark.parametrize("end", ["close", "delete"])
def test_the_worker_ends_with_its_reward(end: str):
    reward = reward_function("answer")
    score(reward, ["1"], answer=["1"])
    worker = process_id(reward)
    assert is_running(worker)
    if end == "close":
        reward.close()
        assert not is_running(worker)
        assert score(reward, ["1"], answer=["1"]) == [1]  # and starts again
        reward.close()
    del reward
    gc.collect()
    assert not is_running(worker)


@pytest.mark.slow
@pytest.mark.parametrize("hangs", [False, True], ids=["at its end", "killed while the reward hangs"])
def test_the_worker_ends_with_the_program(hangs: bool, own: Own, tmp_path: Path):
    module = own("""
        import os, time

        def reward(completions, **columns):
            open("worker", "w").write(str(os.getpid()))
            time.sleep(float(completions[0]))
            return [1.0]
    """)
    (tmp_path / "program.py").write_text(
        dedent(f"""
            from graftlm.reinforce.rewards import reward_function
            if __name__ == "__main__":
                reward = reward_function("{module}:reward", seconds=99)
                print(reward(["a"], ["{60 if hangs else 0}"]))
        """)
    )
    program = subprocess.Popen([sys.executable, "program.py"], stdout=subprocess.PIPE, text=True)
    if hangs:
        while program.poll() is None and not ((tmp_path / "worker").exists() and (tmp_path / "worker").read_text()):
            time.sleep(0.02)
        program.kill()
    assert program.communicate(timeout=30)[0] == ("" if hangs else "[1.0]\n")
    wait_until_gone(int((tmp_path / "worker").read_text()))


def test_a_script_without_a_guard_is_told_so(tmp_path: Path):
    script = tmp_path / "script.py"
    script.write_text(
        "from graftlm.reinforce.rewards import reward_function\nreward_function('answer')(['a'], ['1'], answer=['1'])\n"
    )
    ended = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=30)
    assert ended.returncode == 1 and "needs `if __name__ == '__main__':`" in ended.stderr.splitlines()[-1]


def test_an_interrupted_batch_leaves_no_replies_to_the_next(own: Own, make: Make):
    reward = make(f"{own(FAULTS)}:each", seconds=30)
    assert score(reward, ["one"]) == [3]
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job ignores it
    threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
    try:
        with pytest.raises(KeyboardInterrupt):
            score(reward, ["hang"])
    finally:
        signal.signal(signal.SIGINT, before)
    assert score(reward, ["seven"]) == [5]


# One's own functions


def test_own_functions_are_given_what_trl_gives_as_far_as_it_can_be_pickled(own: Own, make: Make):
    module = own("""
        def names(completions, **columns):
            assert columns["answer"] == ["x", "y"] and columns["completion_ids"] == [[1], [2]]
            assert completions[0] == [{"role": "assistant", "content": "a"}]
            return [len(columns)] * 2

        def some(completions, answer, trainer_state=None):
            return [float(given == "x" and trainer_state is None) for given in answer]

        async def later(prompts, **columns):
            return [len(prompt) for prompt in prompts]
    """)
    given = {
        "completion_ids": [[1], [2]],
        "answer": ["x", "y"],
        "trainer_state": object(),
        "lock": [threading.Lock()] * 2,
    }
    given |= {"log_extra": lambda *_: None, "log_metric": lambda *_: None, "environments": [1, 2]}
    messages = [[{"role": "assistant", "content": word}] for word in "ab"]
    assert score(make(f"{module}:names"), messages, **given) == [3, 3]  # prompts, completion_ids, answer
    assert score(make(f"{module}:some"), messages, **given) == [1, 0]
    assert score(make(f"{module}:later"), messages, **given) == [8, 8]


def test_data_is_checked_against_what_trl_gives(own: Own, make: Make):
    module = own("""
        def by_length(completion_ids, **columns): return [-len(ids) for ids in completion_ids]
        def by_prompt(completions, prompt): return [1] * len(prompt)
    """)
    rows = Dataset.from_dict({"prompt": ["a"], "answer": ["b"]})
    make(f"{module}:by_length").check(rows)
    with pytest.raises(InputError, match="needs the column 'prompt'"):
        make(f"{module}:by_prompt").check(rows)


def test_a_callable_is_taken_where_it_can_be_imported(own: Own, make: Make, monkeypatch: pytest.MonkeyPatch):
    name = own("""
        def times(completions, factor, **columns):
            return [factor * len(word) for word in completions]
    """)
    monkeypatch.syspath_prepend(Path.cwd())
    function = __import__(name).times
    reward = make(partial(function, factor=2))
    assert (reward.__name__, score(reward, ["abc"])) == ("times", [6])
    with pytest.raises(InputError, match="'<lambda>' cannot be sent to its process: define it at the top of a module"):
        reward_function(lambda completions, **columns: [1.0])


def test_names_are_short_for_metrics():
    module = "json:dumps"
    names = {spec: reward_function(spec).__name__ for spec in ("answer", "regex:a+", module)}
    assert names == {"answer": "answer", "regex:a+": "regex", module: "dumps"}


# What is the user's mistake


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("math-verifi", "no reward 'math-verifi': did you mean 'math-verify'?"),
        ("regexp", "no reward 'regexp': did you mean 'regex:PATTERN'?"),
        (
            "zzz",
            "choose one of answer, math-verify, molecule-formula, reasoning-gym:NAME, regex:PATTERN, or module:func",
        ),
        ("", "no reward ''"),
        ("regex", "reward 'regex' lacks the argument after the colon: regex:PATTERN"),
        ("regex:", "lacks the argument after the colon"),
        ("regex:(", r"reward regex: '(' is no regular expression (missing )"),
        ("no_such_module:f", "cannot import 'no_such_module' from"),
        ("reasoning_gim:countdown", "did you mean 'reasoning-gym:NAME'?"),
        ("json:dump_", "reward 'json:dump_': module 'json' has no 'dump_'; did you mean 'dump'?"),
        ("json:__name__", "reward 'json:__name__' is a str, not a function"),
        ("builtins:max", "reward 'builtins:max' does not tell its parameters"),
    ],
)
def test_a_bad_spec_is_one_clear_line(spec: str, message: str):
    with pytest.raises(InputError, match=re.escape(message)) as caught:
        reward_function(spec)
    assert "\n" not in str(caught.value)


def test_a_module_that_fails_to_import_names_its_error(own: Own):
    with pytest.raises(
        InputError, match=r"cannot import 'own_.*: ZeroDivisionError: division by zero \(own_.* line 1\)"
    ):
        reward_function(f"{own('x = 1 / 0')}:f")
    with pytest.raises(InputError, match="No module named 'not_there'"):
        reward_function(f"{own('import not_there')}:f")


@pytest.mark.slow
def test_an_unknown_dataset_is_answered_with_the_nearest():
    pytest.importorskip("reasoning_gym")
    with pytest.raises(InputError, match=r"reasoning-gym has no data set 'countdwn'; did you mean 'countdown'\?"):
        reward_function("reasoning-gym:countdwn")


@pytest.mark.parametrize(
    ("spec", "module", "install"),
    [
        ("math-verify", "math_verify", "graftlm[math]"),
        ("molecule-formula", "rdkit", "graftlm[molecules]"),
        ("reasoning-gym:countdown", "reasoning_gym.factory", "graftlm[reasoning]"),
    ],
)
def test_without_its_package_one_line_says_what_to_install(
    spec: str, module: str, install: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(InputError, match=rf"pip install '{re.escape(install)}'$") as caught:
        reward_function(spec)
    assert "\n" not in str(caught.value)


def test_a_missing_column_is_named_with_the_reward_when_first_called(own: Own, make: Make):
    with pytest.raises(InputError, match="reward 'answer' needs the column 'answer'; the rows have solution, level"):
        score(make("answer"), ["1"], solution=["1"], level=[1], completion_ids=[[1]], trainer_state=None)
    module = own("def f(completions, gold, **columns): return [1]\ndef g(completions, log_extra): return [1]")
    with pytest.raises(InputError, match=f"reward '{module}:f' needs the column 'gold'; the rows have silver"):
        score(make(f"{module}:f"), ["1"], silver=[1])
    with pytest.raises(InputError, match="takes 'log_extra', which its own process cannot have: give it a default"):
        reward_function(f"{module}:g")


@pytest.mark.parametrize("seconds", [0, -1, float("nan")])
def test_a_time_limit_is_positive(seconds: float):
    with pytest.raises(InputError, match="give a positive number"):
        reward_function("answer", seconds=seconds)


def test_an_empty_batch_has_no_rewards():
    with closing(reward_function("answer")) as reward:
        assert score(reward, [], answer=[]) == []


# Rewards by decorator


DECORATED = """
    from graftlm.reinforce import reward

    @reward("short", "1 where the completion has at most `words` words", columns=("words",))
    def is_short(completion, words):
        return float(len(completion.split()) <= words)
"""


def test_a_decorated_function_is_a_reward_that_scores_one_completion(own: Own, make: Make):
    module = own(DECORATED)
    decorated = make(f"{module}:is_short")
    try:
        assert decorated.__name__ == "short" and "short" in specs()
        messages = [{"role": "assistant", "content": "three words here"}]
        assert score(decorated, ["one two", "one two three", messages], words=[2, 2, 3]) == [1, 0, 1]
        assert score(make("short"), ["one"], words=[1]) == [1], "by its name, once its module is imported"
        with pytest.raises(InputError, match="needs the column 'words'"):
            score(decorated, ["one"])
        with pytest.raises(InputError, match="a reward 'short' already: own_"):
            decorate("short", "another")(last_number)
    finally:
        REWARDS.pop("short")


def test_the_documentation_lists_the_built_in_rewards():
    page = (Path(__file__).parents[2] / "docs" / "reinforce.md").read_text("utf-8")
    for each in REWARDS.values():
        columns = " or ".join(f"`{name}`" for name in each.columns)
        assert f"| `{each.spec}` | {each.help} | {columns} |" in page
