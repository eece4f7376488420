"""Put the process-wide state of the libraries where a new process has it, so that a warm worker's bytes are a cold one's."""

from __future__ import annotations

import random
import sys


def neutral(threads: int) -> None:
    """Undo what a job may have left behind: seeds, default dtype and device, gradients, threads, determinism, precision.

    What is not imported has no state. The seeds are for libraries that ask for a number and use it for nothing that
    counts: a stage draws from streams of its own.
    """
    random.seed(0)
    if numpy := sys.modules.get("numpy"):
        numpy.random.seed(0)
    if torch := sys.modules.get("torch"):
        torch.manual_seed(0)
        torch.set_num_threads(threads)
        torch.set_default_dtype(torch.float32)
        torch.set_default_device(None)
        torch.set_grad_enabled(True)
        torch.set_flush_denormal(False)
        torch.set_float32_matmul_precision("highest")
        torch.use_deterministic_algorithms(False)
        torch.autograd.set_detect_anomaly(False)
        torch.backends.cudnn.benchmark = False
        torch.backends.cudnn.deterministic = False
