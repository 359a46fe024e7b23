import numpy as np
import torchax
from transformers import BertConfig, BertForSequenceClassification

from lrp_jax import composites, relevance

config = BertConfig(num_hidden_layers=2, attn_implementation="eager")
# With trained weights: .from_pretrained(name, attn_implementation="eager").eval()
weights, apply = torchax.extract_jax(BertForSequenceClassification(config).eval())
network = lambda ids: apply(weights, (ids, ids != 0))["logits"]  # 0 is padding
ids = np.array([[101, 2054, 1037, 8403, 2143, 102]])  # by your tokenizer
explanation = relevance(network, ids, rules=composites.AttnLRP())
explanation.to_png("relevance.png", tokens="[CLS] what a lovely film [SEP]".split())

print(explanation.summary(classes=["negative", "positive"]))
