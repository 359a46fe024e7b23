import jax.numpy as jnp
import torch
import torchax
from transformers import BertConfig, BertForSequenceClassification

from lrp_jax import composites, relevance

torch.manual_seed(0)
small = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
config = BertConfig(**small, attn_implementation="eager")
model = BertForSequenceClassification(config).eval()  # or .from_pretrained(...)
words = ["[CLS]", "what", "a", "lovely", "film", "[SEP]"]
ids = jnp.array([[101, 2054, 1037, 8403, 2143, 102]])  # by your tokenizer
mask = jnp.ones_like(ids)

weights, apply = torchax.extract_jax(model)
network = lambda ids: apply(weights, (ids, mask))["logits"]
explanation = relevance(network, ids, rules=composites.AttnLRP())
names = ["negative", "positive"]
print(explanation.summary(classes=names))
explanation.to_png("relevance.png", classes=names, tokens=words)
