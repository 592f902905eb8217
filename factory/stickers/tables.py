"""Formats the evaluation of the embedded models as Markdown tables."""

from factory.errors import counted
from factory.stickers.evaluate import Evaluation


def summary_table(measured: Evaluation, models: str) -> str:
    """All metrics with their targets, and the classes that are found least often.

    `models` are the options that name the models of the measurement, if they are not the embedded ones.
    """
    found, judge, kept = measured.found, measured.found_by_judge, measured.autoencoder
    lowest = sorted(found.one_object_by_class.items(), key=lambda item: item[1])[:8]
    below_85 = sum(share < 0.85 for share in found.one_object_by_class.values())
    images = [metrics["images"] for metrics in measured.variety.values()]
    positions = [metrics["positions"] for metrics in measured.variety.values()]
    nearest = measured.nearest_scene
    time_label = f"100 images ({counted(measured.threads, 'thread')})"
    rows = [
        ("one object: class found, score >= 0.5, mean of 80 classes", f"{found.one_object:.1%}", ">= 98 %"),
        ("classes found in under 85 % of their images", str(below_85), "0"),
        ("one object: the class is also the largest instance", f"{found.one_object_is_largest:.1%}", ""),
        ("two objects: both found, score >= 0.5", f"{found.both_of_two:.1%}", ">= 88 %"),
        (
            "a class is drawn twice: images of one object, of two objects",
            f"{found.single_drawn_twice:.1%}, {found.pair_drawn_twice:.1%}",
            "",
        ),
    ]
    if judge is not None:
        rows += [
            ("the second judge: one object", f"{judge.one_object:.1%}", ""),
            ("the second judge: two objects", f"{judge.both_of_two:.1%}", ""),
        ]
    rows += [
        ("autoencoder, PSNR on all training styles and backgrounds", f"{kept.psnr:.2f} dB", ">= 31 dB"),
        ("autoencoder, objects still found: one, two", f"{kept.kept_single:.1%}, {kept.kept_pairs:.1%}", ">= 99 %"),
        ("latent variance above half the Nyquist frequency", f"{kept.roughness:.2f}", ""),
        ("detector mask mIoU, new renders, training styles", f"{measured.mask_miou_train:.3f}", ">= 0.88"),
        ("detector mask mIoU, new renders, held-out style", f"{measured.mask_miou_held_out:.3f}", ">= 0.60"),
        ("detector agreement with itself on mirrored images", f"{measured.mirrored_agreement:.1%}", ">= 95 %"),
        ("variety of images, relative to renders: lowest, mean", _low_and_mean(images), ">= 0.8"),
        ("variety of mask positions, relative to renders: lowest, mean", _low_and_mean(positions), ">= 0.8"),
        ("RMS distance to the nearest training scene: lowest, median", _least_and_median("generated", nearest), ""),
        ("RMS distance of new renders: lowest, median", _least_and_median("fresh_renders", nearest), "similar"),
        (time_label, f"{measured.seconds_for_100_images:.1f} s", ""),
        ("peak memory for 100 images", f"{measured.peak_memory_mib:.0f} MiB", ""),
    ]
    lines = ["| figure | measured | target |", "|---|---|---|"]
    lines += [f"| {name} | {value} | {target} |" for name, value, target in rows]
    lines += ["", "Found least often: " + ", ".join(f"{name} {share:.0%}" for name, share in lowest) + "."]
    return f"{_caption(measured, models)}\n" + "\n".join(lines) + "\n"


def class_table(measured: Evaluation, models: str) -> str:
    """The metrics of each class; `models` as for `summary_table`."""
    lines = ["| class | found | mask IoU, training styles | mask IoU, held-out style |", "|---|---|---|---|"]
    for name, share in measured.found.one_object_by_class.items():
        train, held_out = measured.mask_iou_by_class_train[name], measured.mask_iou_by_class_held_out[name]
        lines.append(f"| {name} | {share:.0%} | {train:.2f} | {held_out:.2f} |")
    return f"{_caption(measured, models)}\n" + "\n".join(lines) + "\n"


def _caption(measured: Evaluation, models: str) -> str:
    sampling = measured.sampling
    return (
        f"`factory stickers evaluate{models} --images-per-class {measured.images_per_class} --pairs {measured.pairs} "
        f"--scenes {measured.scenes} --steps {sampling.steps} --guidance {sampling.guidance:g} --guidance-schedule "
        f"{sampling.schedule}` printed this table.\n"
    )


def _low_and_mean(values: list[float]) -> str:
    return f"{min(values):.2f}, {sum(values) / len(values):.2f}"


def _least_and_median(group: str, nearest: dict[str, float]) -> str:
    return f"{nearest[group + '_min']:.3f}, {nearest[group + '_median']:.3f}"
