"""AdamW (Loshchilov and Hutter 2019) with one of TensorFlow's fused kernels for each variable.

Not here: rates and schedules (fine_tuning.py). The Keras optimizer computes the same in fifteen operations for each of a hundred
variables, each a pass over memory: an eighth of a training step on a CPU.
"""

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

BETA_1, BETA_2, EPSILON = 0.9, 0.999, 1e-7  # Keras' own
NOT_DECAYED = ("bias", "LayerNorm", "layer_norm", "pooler")
"""In names of variables. The pooler has no part in the six labels: its gradient is nought, and decay alone would shrink it."""


class AdamW:
    """Updates variables; to be made in the scope of the strategy that trains, and applied in its replica context."""

    def __init__(self, variables: Sequence[Any], factors: Sequence[float], weight_decay: float) -> None:
        """Make the moments of each variable, whose learning rate is the rate given to apply() times its factor."""
        self._variables = variables
        self._factors = factors
        self._weight_decay = weight_decay
        self._moments = [tuple(tf.Variable(tf.zeros_like(variable), trainable=False) for _ in range(2)) for variable in variables]
        first = tf.VariableAggregation.ONLY_FIRST_REPLICA
        self._powers = [tf.Variable(1.0, trainable=False, aggregation=first) for _ in range(2)]

    def begin_step(self) -> None:
        """Count a step; outside of replica contexts."""
        for power, beta in zip(self._powers, (BETA_1, BETA_2), strict=True):
            power.assign(power * beta)

    def apply(self, gradients: Sequence[Any], rate: Any) -> None:
        """Update every variable that has a gradient (None: none), in one replica."""
        for variable, factor, moments, gradient in zip(self._variables, self._factors, self._moments, gradients, strict=True):
            if gradient is None:
                continue
            its_rate = rate * factor
            before: list[Any] = []
            if not any(part in variable.name for part in NOT_DECAYED):
                before.append(
                    tf.raw_ops.ResourceApplyGradientDescent(
                        var=variable.handle, alpha=its_rate * self._weight_decay, delta=variable.read_value()
                    )
                )
            with tf.control_dependencies([each for each in before if each is not None]):
                tf.raw_ops.ResourceApplyAdam(
                    var=variable.handle,
                    m=moments[0].handle,
                    v=moments[1].handle,
                    beta1_power=self._powers[0].read_value(),
                    beta2_power=self._powers[1].read_value(),
                    lr=its_rate,
                    beta1=BETA_1,
                    beta2=BETA_2,
                    epsilon=EPSILON,
                    grad=tf.convert_to_tensor(gradient),
                )
