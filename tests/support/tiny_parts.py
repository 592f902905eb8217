"""The scheduler and the autoencoder that tiny pipelines of several families share."""

from typing import Any

import diffusers


def flow_matching(**options: Any) -> Any:
    return diffusers.FlowMatchEulerDiscreteScheduler(**options)


def kl_autoencoder() -> Any:
    return diffusers.AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(4,) * 4,
        latent_channels=4,
        layers_per_block=1,
        norm_num_groups=2,
        shift_factor=0.06,
        scaling_factor=1.5,
        use_quant_conv=False,
        use_post_quant_conv=False,
    ).eval()
