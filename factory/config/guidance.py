"""Schedules of classifier-free guidance.

Strong guidance in the first steps makes the images of a prompt alike and merges objects; in the last steps, it sharpens
images. Wang et al., *Analysis of Classifier-Free Guidance Weight Schedulers* (TMLR 2024), found that a scale that
increases linearly gives better images than a constant one.
"""

from typing import Literal

GuidanceSchedule = Literal["constant", "linear"]
CONSTANT: GuidanceSchedule = "constant"


def linear_scale(guidance: float, position: float) -> float:
    """The scale at a position of sampling, 0 to 1: from 1 to 2 * guidance - 1, on average `guidance`."""
    return 1 + 2 * (guidance - 1) * position
