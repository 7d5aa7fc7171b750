"""AdamW beside Keras' own: the same weights after the same gradients."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from toxicity.optimizer import AdamW

pytestmark = pytest.mark.tensorflow

RATES = [0.1, 0.05, 0.01, 0.2]


def variables() -> list[tf.Variable]:
    generator = np.random.default_rng(0)
    shapes = {"layer/kernel": (4, 3), "layer/bias": (3,), "pooler/kernel": (3, 3), "embeddings": (10, 3)}
    return [tf.Variable(generator.normal(size=shape).astype(np.float32), name=name) for name, shape in shapes.items()]


def gradients(step: int, given: list[tf.Variable]) -> list[tf.Tensor | tf.IndexedSlices | None]:
    generator = np.random.default_rng(step)
    dense = [tf.constant(generator.normal(size=variable.shape).astype(np.float32)) for variable in given[:3]]
    rows = tf.constant(generator.normal(size=(3, 3)).astype(np.float32))
    return [*dense, tf.IndexedSlices(rows, tf.constant([step, 7, step]), tf.constant([10, 3]))]


def test_it_goes_where_keras_goes() -> None:
    ours, theirs = variables(), variables()
    optimizer = AdamW(ours, [1.0] * len(ours), weight_decay=0.1)
    reference = tf_keras.optimizers.AdamW(weight_decay=0.1)
    reference.exclude_from_weight_decay(var_names=["bias", "pooler"])
    reference.build(theirs)
    for step, rate in enumerate(RATES):
        optimizer.begin_step()
        optimizer.apply(gradients(step, ours), tf.constant(rate))
        reference.learning_rate.assign(rate)
        reference.apply_gradients(zip(gradients(step, theirs), theirs, strict=True))
    for mine, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(mine.numpy(), other.numpy(), rtol=1e-4, atol=1e-5)


def test_a_factor_is_a_higher_rate_and_what_has_no_gradient_stays() -> None:
    quick, slow = variables(), variables()
    for given, factor, rate in ((quick, 10.0, 0.001), (slow, 1.0, 0.01)):
        optimizer = AdamW(given, [factor] * len(given), weight_decay=0.1)
        optimizer.begin_step()
        optimizer.apply([None, *gradients(0, given)[1:]], tf.constant(rate))
    for one, other, start in zip(quick, slow, variables(), strict=True):
        np.testing.assert_allclose(one.numpy(), other.numpy(), rtol=1e-6)
        assert np.array_equal(one.numpy(), start.numpy()) == (start.name == "layer/kernel:0")
