"""Pipelines without a prompt: unconditional ones, and class-conditional ones."""

from functools import partial
from pathlib import Path

from diffusers import (
    CMStochasticIterativeScheduler,
    ConsistencyModelPipeline,
    DDIMPipeline,
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    DiTPipeline,
    DiTTransformer2DModel,
    KarrasVePipeline,
    KarrasVeScheduler,
    UNet2DModel,
)

from zoo.parts import Components, entry, vae, without_prompt


def pixels(folder: Path, **conditioning: object) -> Components:
    network = UNet2DModel(
        sample_size=8,
        layers_per_block=1,
        block_out_channels=(8, 16),
        norm_num_groups=4,
        attention_head_dim=8,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        **conditioning,
    )
    return {"unet": network}


def dit(folder: Path) -> Components:
    transformer = DiTTransformer2DModel(
        sample_size=8,
        num_layers=1,
        patch_size=2,
        attention_head_dim=8,
        num_attention_heads=2,
        in_channels=4,
        out_channels=8,
        num_embeds_ada_norm=1000,
    )
    return {"transformer": transformer, "vae": vae()}


image = partial(entry, output_type="np", batch_size=1)
TRAINED_CONSISTENCY = partial(CMStochasticIterativeScheduler, num_train_timesteps=40)
"""Of the networks for ImageNet of 64 pixels."""
classes = partial(pixels, num_class_embeds=10)
ENTRIES = [
    without_prompt(made)
    for made in [
        image(DDPMPipeline, pixels, DDPMScheduler),
        image(DDIMPipeline, pixels, DDIMScheduler),
        image(DDIMPipeline, pixels, DDIMScheduler, "-eta", eta=1.0),
        image(ConsistencyModelPipeline, classes, TRAINED_CONSISTENCY, class_labels=1),
        image(KarrasVePipeline, pixels, KarrasVeScheduler),
        entry(DiTPipeline, dit, DDIMScheduler, class_labels=[1], output_type="np"),
    ]
]
SKIPPED = {
    "ShapEPipeline": "makes shapes in space: needs a renderer, and no reward here sees those",
    "LDMPipeline": "deprecated",
    "PNDMPipeline": "deprecated",
    "ScoreSdeVePipeline": "deprecated",
}
"""Pipelines without an entry, and why."""
