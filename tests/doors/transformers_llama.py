import jax.numpy as jnp
import torch
import torchax
from transformers import LlamaConfig, LlamaForCausalLM

from lrp_jax import composites, relevance

torch.manual_seed(0)
small = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
config = LlamaConfig(**small, attn_implementation="eager")
model = LlamaForCausalLM(config).eval()  # or .from_pretrained(...)
words = ["<s>", "The", "capital", "of", "France", "is"]
ids = jnp.array([[1, 450, 7483, 310, 3444, 338]])  # by your tokenizer

weights, apply = torchax.extract_jax(model)
next_token = lambda ids: apply(weights, (ids,))["logits"][:, -1]
explanation = relevance(next_token, ids, rules=composites.AttnLRP())
print(explanation.summary())
explanation.to_png("relevance.png", tokens=words)
