import jax.numpy as jnp
from jax import nn, random

from lrp_jax import plan, relevance

keys = random.split(random.key(0))
weights = {"signal": random.normal(keys[0], (64, 8)), "age": jnp.ones((1, 8))}
hidden = lambda x: nn.relu(x["signal"] @ weights["signal"] + x["age"] @ weights["age"])
risk = lambda x: hidden(x).sum(1)  # one number for each sample
x = {"signal": jnp.sin(jnp.arange(128) / 5).reshape(2, 64), "age": jnp.ones((2, 1))}
explanation = relevance(risk, x)
explanation.to_png("relevance.png")

print(explanation.summary())
print(plan(risk, x))
