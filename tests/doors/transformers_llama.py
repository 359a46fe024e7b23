import numpy as np
import torchax
from transformers import LlamaConfig, LlamaForCausalLM

from lrp_jax import composites, relevance

config = LlamaConfig(num_hidden_layers=2, hidden_size=64, attn_implementation="eager")
# With trained weights: .from_pretrained(name, attn_implementation="eager").eval()
weights, apply = torchax.extract_jax(LlamaForCausalLM(config).eval())
network = lambda ids: apply(weights, (ids,))["logits"][:, -1]  # the next token
ids = np.array([[1, 450, 7483, 310, 3444, 338]])  # by your tokenizer
explanation = relevance(network, ids, rules=composites.AttnLRP())
explanation.to_png("relevance.png", tokens="<s> The capital of France is".split())

print(explanation.summary())
