"""RL with a checkable reward: which capitals the model names, learnt from forking tokens, its formats watched.

python examples/reinforce.py report.html        (a few minutes on two cores)
"""

import sys
from pathlib import Path

import torch
from peft import LoraConfig

from graftlm import ForkingTokenGRPOConfig, ForkingTokenGRPOTrainer, Format, FormatMonitor, load_model
from graftlm.reinforce.page import write_reinforce_report
from graftlm.tasks import get_task


def names_the_capital(completions: list[str], answer: list[str], **_: object) -> list[float]:
    return [float(name.strip() in completion) for completion, name in zip(completions, answer, strict=True)]


model, tokenizer = load_model("smollm2-135m")
monitor = FormatMonitor([Format("name", r"^ [A-Z]"), Format("words", r"^ [a-z]")])
gpu = torch.cuda.is_available()
settings = {"forking_fraction": 0.2, "num_generations": 8, "learning_rate": 1e-4, "max_steps": 12}
trainer = ForkingTokenGRPOTrainer(
    model,
    reward_funcs=monitor.watch(names_the_capital),
    args=ForkingTokenGRPOConfig("reinforced", per_device_train_batch_size=64, max_completion_length=10, use_cpu=not gpu,
                                bf16=gpu, logging_steps=1, save_strategy="no", report_to="none", **settings),
    train_dataset=get_task("capitals").rows("test").rename_column("completion", "answer"),
    processing_class=tokenizer,
    peft_config=LoraConfig(r=16, target_modules="all-linear", task_type="CAUSAL_LM"),
    callbacks=[monitor],
)  # fmt: skip
trainer.train()
history = trainer.state.log_history, monitor.history
write_reinforce_report(Path(sys.argv[1]), *history, title="Which capitals, and how", settings=settings)
