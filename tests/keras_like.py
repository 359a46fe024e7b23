"""Models with the protocol of Keras 3, so that the default tests need no Keras; `tests/doors` has the real ones.

Layers read variables, whose values `stateless_call` replaces while it runs. As in Keras, a model does not enter its
name into the paths of variables that were made before it.
"""

import contextlib

import jax.numpy as jnp


class Variable:
    def __init__(self, path, value):
        self.path, self.name, self.replaced = path, path.rpartition("/")[2], None
        self.stored = value

    @property
    def value(self):
        return self.stored if self.replaced is None else self.replaced

    def assign(self, value):
        if self.replaced is None:
            self.stored = jnp.asarray(value)
        else:
            self.replaced = value


class Layer:
    def __init__(self, name, trainable=(), fixed=()):
        self.name, self.built, self.variables, self.fixed = name, True, list(trainable), list(fixed)

    @property
    def trainable_variables(self):
        return self.variables

    @property
    def non_trainable_variables(self):
        return self.fixed

    def stateless_call(self, trainable, non_trainable, *args, **kwargs):
        with contextlib.ExitStack() as stack:
            values = [*trainable, *non_trainable]
            for variable, value in zip((*self.trainable_variables, *self.non_trainable_variables), values, strict=True):
                variable.replaced = value
                stack.callback(setattr, variable, "replaced", None)
            return self.call(*args, **kwargs), [variable.value for variable in self.non_trainable_variables]

    def __call__(self, *args, **kwargs):
        return self.call(*args, **kwargs)


class Dense(Layer):
    """x @ kernel + bias, and a relu if it is asked for."""

    def __init__(self, name, kernel, bias=None, relu=False, within=""):
        super().__init__(name, [Variable(f"{within}{name}/kernel", jnp.asarray(kernel))])
        self.relu = relu
        if bias is not None:
            self.variables.append(Variable(f"{within}{name}/bias", jnp.asarray(bias)))

    def call(self, x):
        z = x @ self.variables[0].value + sum(variable.value for variable in self.variables[1:])
        return jnp.maximum(z, 0.0) if self.relu else z


class BatchNorm(Layer):
    """x less a mean, which is that of the batch in training, and moves."""

    def __init__(self, name, mean, asks=True):
        super().__init__(name, fixed=[Variable(f"{name}/moving_mean", jnp.asarray(mean))])
        self.asks = asks

    def call(self, x, training=True):
        if training or not self.asks:
            self.fixed[0].assign(0.9 * self.fixed[0].value + 0.1 * x.mean(0))
        return x - self.fixed[0].value


class Model(Layer):
    """Layers after one another."""

    def __init__(self, name, *layers):
        super().__init__(name)
        self.layers = layers

    @property
    def trainable_variables(self):
        return [variable for layer in self.layers for variable in layer.trainable_variables]

    @property
    def non_trainable_variables(self):
        return [variable for layer in self.layers for variable in layer.non_trainable_variables]

    def call(self, x, training=True):
        for layer in self.layers:
            x = layer(x, training=training) if isinstance(layer, Model | BatchNorm) else layer(x)
        return x
