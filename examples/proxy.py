"""A small tuned model steers a large one while decoding; the large one's weights stay as they are.

python examples/proxy.py BASE EXPERT ANTIEXPERT "a prompt"        (names, folders or adapters that share a tokenizer)
"""

import sys

from graftlm import ProxyTunedModel

base, expert, antiexpert, prompt = sys.argv[1:]
model = ProxyTunedModel(base, expert, antiexpert, alpha=1.0)
tokenizer = model.tokenizer
inputs = tokenizer(prompt, return_tensors="pt", return_token_type_ids=False).to(model.device)
written = model.generate(**inputs, max_new_tokens=64, do_sample=False)
print(tokenizer.decode(written[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
