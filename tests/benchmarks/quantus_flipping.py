"""Pixel flipping by Quantus, in the peers' environment.

    python quantus_flipping.py ARRAYS STEPS

ARRAYS is an npz file with the parameters of LeNet, then its images, then their relevance.
"""

import json
import sys

import numpy as np
import quantus
import torch
from peers_torch import lenet
from results import seconds


def main() -> None:
    """Prints the seconds of the second of two calls, and the mean curve of the explained output."""
    path, steps = sys.argv[1], int(sys.argv[2])
    with np.load(path) as file:
        arrays = [file[key] for key in file.files]
    relevance, images = (arrays.pop().transpose(0, 3, 1, 2).copy() for _ in range(2))
    model = lenet(iter(arrays)).eval()
    with torch.no_grad():
        classes = model(torch.tensor(images)).argmax(1).numpy()
    metric = quantus.PixelFlipping(
        features_in_step=images[0].size // steps, perturb_baseline="black", normalise=False, disable_warnings=True
    )
    curves: list[list[float]] = []

    def flip() -> None:
        curves[:] = metric(model=model, x_batch=images, y_batch=classes, a_batch=relevance, softmax=False, device="cpu")

    took = [seconds(flip) for _ in range(2)]
    print(json.dumps({"seconds": took[-1], "curve": np.mean(curves, axis=0).tolist()}), flush=True)


if __name__ == "__main__":
    main()
