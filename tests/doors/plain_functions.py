import jax
import jax.numpy as jnp

from lrp_jax import plan, relevance

keys = jax.random.split(jax.random.key(0), 3)
signal, age = {"kernel": jax.random.normal(keys[0], (64, 8))}, {"kernel": jax.random.normal(keys[1], (1, 8))}
weights = {"signal": signal, "age": age}


def risk(weights: dict, signal: jax.Array, age: jax.Array) -> jax.Array:
    """One number for each sample."""
    hidden = jax.nn.relu(signal @ weights["signal"]["kernel"] + age @ weights["age"]["kernel"])
    return hidden.sum(1)


x = {"signal": jnp.sin(jnp.arange(128.0) / 5).reshape(2, 64), "age": jnp.array([[0.3], [0.7]])}
model = lambda x: risk(weights, **x)
print(plan(model, x))
explanation = relevance(model, x)  # of the number itself
print(explanation.summary())
explanation.to_png("relevance.png")
