"""Multi-token fine-tuning from Python in one or two minutes on two cores; far too small to be useful.

    python examples/multitoken.py

writes into the folder example-run and replaces what it wrote there before. Its steps are those of
`graftlm distill`, `graftlm tune` and `graftlm evaluate`; the README has them in a useful size. The evaluation
needs RDKit: pip install 'graftlm[molecules]'.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from peft import LoraConfig
from transformers import set_seed

from graftlm import MultiTokenConfig, MultiTokenTrainer, distill_heads, evaluate, load_model
from graftlm.data.load import general_prompts, load_rows, prompt_tokens
from graftlm.data.written_text import write_texts
from graftlm.heads.config import DistillConfig

FOLDER = Path("example-run")


def main() -> None:
    set_seed(0)  # LoRA's initial weights; distillation and training seed themselves
    shutil.rmtree(FOLDER, ignore_errors=True)
    model, tokenizer = load_model("smollm2-135m")
    rows = load_rows("molecules")

    # 1. The model writes text, from the domain's prompts and from general ones.
    domain = [prompt_tokens(prompt, tokenizer) for prompt in rows["prompt"]]
    general = [prompt_tokens(prompt, tokenizer) for prompt in general_prompts()]
    size = {"max_new_tokens": 24, "batch_size": 16}
    texts = write_texts(model, tokenizer, domain, kind="domain", tokens=300, **size)
    texts += write_texts(model, tokenizer, general, kind="general", tokens=300, **size)

    # 2. Four heads learn to say what the model itself says further on.
    distilled = distill_heads(model, tokenizer, texts, DistillConfig(num_heads=4, epochs=2))
    distilled.heads.save_pretrained(FOLDER / "heads")
    for kind, shares in distilled.agreement.items():
        before = distilled.before[kind]
        print(f"{kind} text: head 1 agrees with the model on {before[0]:.0%} before, {shares[0]:.0%} after")

    # 3. A LoRA fine-tune in which the heads take part.
    trainer = MultiTokenTrainer(
        model,
        MultiTokenConfig(
            str(FOLDER / "checkpoints"),
            max_steps=10,
            per_device_train_batch_size=8,
            learning_rate=6e-4,
            gradient_checkpointing=False,  # saves memory, costs time
            logging_steps=5,
            save_strategy="no",
            report_to="none",
        ),
        heads=distilled.heads,
        train_dataset=rows,
        processing_class=tokenizer,
        peft_config=LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"),
    )
    trainer.train()
    trainer.save_model(str(FOLDER / "model"))  # a plain PEFT adapter; the heads lie beside it

    # 4. What was learnt, and what was forgotten.
    tuned, tokenizer = load_model(FOLDER / "model")
    for name, result in evaluate(tuned, tokenizer, ["molecules", "capitals"], limit=10).items():
        print(name, {metric: round(value, 3) for metric, value in result.metrics.items()})


if __name__ == "__main__":
    main()
