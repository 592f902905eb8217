"""Differences between two datasets with the same plan, for example in float32 and in bfloat16.

    python -m benchmarks.same_samples out/float32 out/bfloat16

Compares the samples that both contain: the PSNR of their images, and the IoU of their foregrounds. The agreement with
the detector requires `filters.min_detector_iou` in both recipes; `attempts: 1` keeps the seeds of all samples equal.
"""

import numpy as np

from benchmarks.common import command_line, options_of, run
from factory.api import DatasetSample, open_dataset
from factory.errors import UserError


def psnr(first: DatasetSample, second: DatasetSample) -> float:
    error = np.square(first.image.astype(float) - second.image).mean()
    return float(10 * np.log10(255**2 / max(error, 1e-6)))


def foreground_iou(first: DatasetSample, second: DatasetSample) -> float:
    a, b = first.labels > 0, second.labels > 0
    return float((a & b).sum() / max(1, (a | b).sum()))


def agreement(samples: list[DatasetSample]) -> str:
    values = [sample.record["filters"].get("detector_iou") for sample in samples]
    known = [value for value in values if value is not None]
    return f"{np.mean(known):.3f}" if known else "unknown"


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("datasets", nargs=2)
    addresses = options_of(parser).datasets
    first, second = ({sample.key: sample for sample in open_dataset(address)} for address in addresses)
    print("| dataset | accepted | mean lowest IoU with the detector |\n|---|---|---|")
    for address, samples in zip(addresses, (first, second), strict=True):
        print(f"| {address} | {len(samples)} | {agreement(list(samples.values()))} |")
    pairs = [(first[key], second[key]) for key in sorted(first.keys() & second.keys())]
    if not pairs:
        raise UserError(f"{' and '.join(addresses)} have no sample in common; give two datasets with the same plan.")
    print(f"\n{len(pairs)} samples in both: median PSNR {np.median([psnr(*pair) for pair in pairs]):.1f} dB,")
    ious = [foreground_iou(*pair) for pair in pairs]
    print(f"IoU of the foregrounds: median {np.median(ious):.3f}, mean {np.mean(ious):.3f}")


if __name__ == "__main__":
    run(main)
