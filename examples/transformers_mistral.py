"""Generate text with a Mistral of transformers whose attention nbattn computes.

Run it: `python examples/transformers_mistral.py`. The model is small and random; load a real one by
`AutoModelForCausalLM.from_pretrained(name, attn_implementation="nbattn")`.
"""

from __future__ import annotations

import sys

import torch

try:
    from transformers import MistralConfig, MistralForCausalLM
except ImportError:
    sys.exit("This needs a package: pip install 'transformers>=5.24,<6'")

import nbattn
from nbattn.integrations.transformers import register

WINDOW = 64
CONFIG = MistralConfig(
    vocab_size=500,
    hidden_size=128,
    intermediate_size=256,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    sliding_window=WINDOW,
    initializer_range=0.1,
    pad_token_id=0,
    eos_token_id=None,
)


def main() -> bool:
    """Continue two prompts, one of them padded, with both implementations; return if equal."""
    register()
    torch.manual_seed(0)
    model = MistralForCausalLM(CONFIG).eval()
    prompts = torch.randint(1, CONFIG.vocab_size, (2, 100))
    attention_mask = torch.ones_like(prompts)
    attention_mask[1, :30] = prompts[1, :30] = 0  # padding on the left
    texts = []
    for implementation in ("eager", "nbattn"):
        model.set_attn_implementation(implementation)
        text = model.generate(
            prompts, attention_mask=attention_mask, max_new_tokens=20, do_sample=False
        )
        texts.append(text[:, prompts.shape[1] :])
    same = torch.equal(*texts)
    print(model.model.layers[0].self_attn)
    print(nbattn.Mask.from_transformers(WINDOW))
    print(f"{texts[1].numel()} tokens, {'equal' if same else 'NOT equal'} to eager's")
    return same


if __name__ == "__main__":
    main()
