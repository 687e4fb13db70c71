"""All claims for a CUDA device in one process, within four minutes: generation, training, and a step beside TRL's.

It runs `generation_cuda`, `training_cuda` and `step_vs_trl --cuda` on one model, and writes each result when it is
measured. Run as `python benchmarks/accelerator.py`; `--only` chooses some of the three.
"""

from __future__ import annotations

import argparse
import gc
import tempfile
from pathlib import Path

import generation_cuda
import harness
import torch
import training_cuda
from transformers import logging

PARTS = ("generation", "training", "step")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    given = parser.parse_args()
    logging.set_verbosity_error()
    began = harness.machine() | {"device": torch.cuda.get_device_name(0)}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = generation_cuda.half_billion("cuda:0")
        training_cuda.save(model, folder)
        if "generation" in given.only:
            harness.publish("generation_cuda", generation_cuda.measure(model, generation_cuda.WORKS, 3), began=began)
        del model
        _free()
        if "training" in given.only:
            body = training_cuda.measure(folder, "cuda:0", training_cuda.WORK, ["packed", "padded"], 5, None)
            harness.publish("training_cuda", body, began=began)
            _free()
        if "step" in given.only:
            import step_vs_trl

            samples = step_vs_trl.measure(step_vs_trl.on_a_device(folder), 3, 1, folder)
            harness.publish("step_vs_trl_cuda", step_vs_trl.figures_of(step_vs_trl.CUDA, samples), began=began)


def _free() -> None:
    gc.collect()
    torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
