"""Where training is computed: on every GPU that TensorFlow sees, or else on the CPU, in mixed precision where the device has it.

Not here: the training step (fine_tuning.py). Nothing is configured beside this: a worker on a machine with GPUs uses them.
"""

import functools
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tensorflow as tf

logger = logging.getLogger(__name__)

FLOAT16 = "auto_mixed_precision"  # on GPUs; needs loss scaling
BFLOAT16 = "auto_mixed_precision_onednn_bfloat16"  # on CPUs that have it; has float32's range
BFLOAT16_FLAGS = {"avx512_bf16", "amx_bf16"}
CPU_INFO = Path("/proc/cpuinfo")


@dataclass(frozen=True)
class Devices:
    """What a network is trained on: TensorFlow's names of the devices, and the rewrite to mixed precision (None: float32)."""

    names: tuple[str, ...]
    precision: str | None
    rewrites: bool = True  # False: the network is built in mixed precision, and TensorFlow has nothing to rewrite

    def strategy(self) -> Any:
        """Return tf.distribute.MirroredStrategy over several devices, and TensorFlow's default strategy for one."""
        return _mirrored(self.names) if len(self.names) > 1 else tf.distribute.get_strategy()

    @contextmanager
    def mixed_precision(self) -> Iterator[None]:
        """Let TensorFlow rewrite the graphs that run in here; those that run elsewhere keep float32.

        The rewrite works on graphs, so on any TensorFlow Hub encoder; weights, and what they are kept as, stay float32.
        """
        if self.precision is None or not self.rewrites:
            yield
            return
        tf.config.optimizer.set_experimental_options({self.precision: True})
        try:
            yield
        finally:
            tf.config.optimizer.set_experimental_options({self.precision: False})


@functools.cache  # variables can be trained only under the very strategy that they were made under
def _mirrored(names: tuple[str, ...]) -> Any:
    return tf.distribute.MirroredStrategy(list(names))


def training_devices(gpus: Sequence[Any] | None = None, cpu_info: Path = CPU_INFO) -> Devices:
    """Return every GPU (None: those that TensorFlow sees), or else the CPU.

    Memory growth is switched on for each GPU first, because the backend may serve from the same one.
    """
    gpus = share_gpu_memory() if gpus is None else gpus
    if gpus:
        names = tuple(gpu.name.removeprefix("/physical_device:") for gpu in gpus)
        logger.info("training on %s, in mixed precision (float16)", ", ".join(names))
        return Devices(names, FLOAT16)
    precision = BFLOAT16 if has_bfloat16(cpu_info) else None
    logger.info("training on the CPU, in %s", "mixed precision (bfloat16)" if precision else "float32")
    return Devices(("CPU:0",), precision)


def answers_in_bfloat16(gpus: Sequence[Any] | None = None, cpu_info: Path = CPU_INFO) -> bool:
    """Whether a network that is not trained answers in bfloat16: on a CPU that has it; on GPUs (None: those there are) not."""
    gpus = share_gpu_memory() if gpus is None else gpus
    return not gpus and has_bfloat16(cpu_info)


def share_gpu_memory() -> list[Any]:
    """Let this process take GPU memory only as it needs it, whichever GPUs there are; return them.

    To be called before TensorFlow uses one; calling it again changes nothing.
    """
    gpus: list[Any] = tf.config.list_physical_devices("GPU")
    for gpu in gpus:
        tf.config.experimental.set_memory_growth(gpu, True)
    return gpus


def has_bfloat16(cpu_info: Path = CPU_INFO) -> bool:
    """Whether the processor multiplies in bfloat16; where that cannot be found out, no."""
    try:
        words = cpu_info.read_text(errors="replace").split()
    except OSError:  # not Linux
        return False
    return not BFLOAT16_FLAGS.isdisjoint(words)
