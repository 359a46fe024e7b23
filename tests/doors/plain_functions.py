import jax
import jax.numpy as jnp

from lrp_jax import plan, relevance

keys = jax.random.split(jax.random.key(0), 3)
weights = {"signal": jax.random.normal(keys[0], (64, 8)), "age": jax.random.normal(keys[1], (1, 8))}


def predict(signal: jax.Array, age: jax.Array) -> jax.Array:
    """One number for each sample."""
    return jax.nn.relu(signal @ weights["signal"] + age @ weights["age"]).sum(1)


x = {"signal": jnp.sin(jnp.arange(128.0).reshape(2, 64)), "age": jnp.array([[0.3], [0.7]])}
model = lambda x: predict(**x)
print(plan(model, x))
explanation = relevance(model, x, target=lambda output: output)
print(explanation.summary())
