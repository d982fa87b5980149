"""VideoAlign's VideoReward as a reward for ``python -m diffreward.serving``.

NOT RUN by us: no machine here had the weights. Written from the repository's README and its
``inference.py`` (github.com/KwaiVGI/VideoAlign, commit 219ab9d, MIT); only the writing of the
videos is tested. To be started in a clone of that repository, with the weights of the hub's
KwaiVGI/VideoReward in ``checkpoints/``, and with Python 3.11 or later in place of the 3.10 that its
environment names:

    pip install fastapi uvicorn "av>=13"
    pip install --no-deps diffreward
    PYTHONPATH=. python -m diffreward.serving /path/to/examples/servers/videoalign.py:score --rows 1

Source: Liu et al. (2025), arXiv:2501.13918. A Qwen2-VL-2B judges visual quality, motion quality and
text alignment. Each is centred and scaled by the statistics in ``checkpoints/model_config.json``;
the score is their sum, so 0 is about the average of the videos it was calibrated on.

The model reads files. The videos are written as H.264 with quantiser 0, so nothing is lost but half
the resolution of colour, as in every ordinary mp4; height and width must be even for that.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from diffreward.samples import Samples, Videos, videos

if TYPE_CHECKING:
    from inference import VideoVLMRewardInference

CHECKPOINTS = "./checkpoints"


def score(samples: Samples, prompts: Sequence[str]) -> Tensor:
    """The sum of the three judgements of each video, (B,), higher is better."""
    videos(samples)  # says what is wrong with samples of another kind
    return torch.tensor([_overall(samples[i : i + 1], prompts[i]) for i in range(len(samples))])


def _overall(video: Samples, prompt: str) -> float:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "video.mp4"
        write_mp4(video, file)
        # One by one, for a batch is padded. An error ends in "no score" by the server's hand.
        (judgement,) = _model().reward([str(file)], [prompt], use_norm=True)
    return float(judgement["Overall"])


def write_mp4(video: Videos, file: Path) -> None:
    """Write one video, (1, F, 3, H, W), as H.264 without loss but that of 4:2:0 colour."""
    import av

    frames = video.uint8()[0].numpy()
    with av.open(str(file), "w") as container:
        rate = Fraction(video.fps).limit_denominator(1001)
        stream = container.add_stream("libx264", rate=rate, options={"qp": "0"})
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))


@cache
def _model() -> VideoVLMRewardInference:
    from inference import VideoVLMRewardInference

    device = "cuda" if torch.cuda.is_available() else "cpu"
    return VideoVLMRewardInference(CHECKPOINTS, device=device, dtype=torch.bfloat16)
