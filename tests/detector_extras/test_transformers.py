"""Detectors of transformers against its image processors, which need torchvision.

`make test-extras` creates an environment that has it; without it these tests fail.
"""

from pathlib import Path

import numpy as np
import pytest
import torch

from factory.config.vocabulary import coco
from factory.dataset.records import Instance
from factory.detector.load import open_detector
from factory.detector.preprocessing import Preprocessor, read_settings
from factory.detector.sam2 import Sam2Masks
from tests.support.detector_extras import LABELS, image, recipe, rows
from tests.support.library_detections import library_rows
from tests.support.tiny_detectors import tiny_oneformer, tiny_rf_detr
from tests.support.tiny_open_vocabulary import tiny_sam2, tiny_sam3

pytestmark = [pytest.mark.extras, pytest.mark.filterwarnings("default")]


def test_rf_detr_instances_match_the_library(tmp_path: Path) -> None:
    folder = tiny_rf_detr(tmp_path / "it", coco().names)
    (found,) = open_detector(recipe(folder), "cpu").detect([image()])
    expected, _ = library_rows(folder, image(), target_sizes=[(96, 128)], return_binary_maps=True)
    named = [(LABELS[label], score, mask.tobytes()) for label, score, mask in expected if label and mask.any()]
    assert rows(found) == sorted(named)
    assert len(found) > 3


def test_oneformer_instances_match_the_library_in_every_size(tmp_path: Path) -> None:
    folder = tiny_oneformer(tmp_path / "it", coco().names)
    (found,) = open_detector(recipe(folder), "cpu").detect([image()])
    expected, _ = library_rows(folder, image(), target_sizes=[(96, 128)])
    assert rows(found) == sorted((LABELS[label], score, mask.tobytes()) for label, score, mask in expected if label)
    assert found


def test_sam3_preprocessing_instances_and_scores_match_the_library(tmp_path: Path) -> None:
    from transformers import AutoTokenizer, Sam3Model, Sam3Processor
    from transformers.models.sam3.image_processing_sam3 import Sam3ImageProcessor

    classes = ["dog", "traffic light"]
    folder = tiny_sam3(tmp_path / "it", classes)
    (found,) = open_detector(recipe(f"sam3:{folder}", classes), "cpu").detect([image()])
    images = Sam3ImageProcessor.from_pretrained(folder)
    processor = Sam3Processor(images, AutoTokenizer.from_pretrained(folder))
    given = Preprocessor(read_settings(str(folder), None), "it")(image())
    torch.testing.assert_close(given, images(image(), return_tensors="pt").pixel_values, rtol=0, atol=1e-6)
    expected = []
    for name in classes:
        inputs = processor(images=image(), text=name, return_tensors="pt")
        with torch.inference_mode():
            output = Sam3Model.from_pretrained(folder).eval()(
                **{key: inputs[key] for key in ("pixel_values", "input_ids", "attention_mask")}
            )
        (row,) = processor.post_process_instance_segmentation(output, threshold=0.3, target_sizes=[(96, 128)])
        pairs = zip(row["scores"].tolist(), row["masks"].bool().numpy(), strict=True)
        expected += [Instance(name, score, mask) for score, mask in pairs if mask.any()]
    assert [(k, round(s, 5), m) for k, s, m in rows(found)] == [(k, round(s, 5), m) for k, s, m in rows(expected)]
    assert len(found) > 5


def test_sam2_preprocessing_and_masks_match_the_library(tmp_path: Path) -> None:
    from transformers import Sam2Model, Sam2Processor
    from transformers.models.sam2.image_processing_sam2 import Sam2ImageProcessor

    folder = tiny_sam2(tmp_path / "it")
    boxes = [[4.0, 8.0, 60.0, 70.0], [30.0, 20.0, 120.0, 90.0]]
    with torch.inference_mode():
        found = Sam2Masks(str(folder), None, "cpu").masks(image(), torch.tensor(boxes))
        processor = Sam2Processor(Sam2ImageProcessor.from_pretrained(folder))
        inputs = processor(images=image(), input_boxes=[boxes], return_tensors="pt")
        given = Preprocessor(read_settings(str(folder), None), "it")(image())
        torch.testing.assert_close(given, inputs.pixel_values, rtol=0, atol=1e-5)
        output = Sam2Model.from_pretrained(folder).eval()(
            pixel_values=inputs.pixel_values, input_boxes=inputs.input_boxes, multimask_output=False
        )
    (expected,) = processor.post_process_masks(output.pred_masks, inputs.original_sizes)
    assert np.array_equal(found, expected[:, 0].numpy())
    assert 0 < found.mean() < 1
