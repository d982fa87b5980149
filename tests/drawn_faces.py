"""Pictures of faces that face detectors take for faces, drawn from ellipses."""

from collections.abc import Sequence

import torch
from torch import Tensor

from diffreward.samples import Images

# Of a face whose centre is at 0 and whose height is 1: centre, half axes and colour of ellipses,
# each over those before it.
ELLIPSES = [
    ((0.00, -0.10), (0.41, 0.52), (0.24, 0.16, 0.12)),  # hair
    ((0.00, 0.06), (0.31, 0.44), (0.88, 0.71, 0.59)),  # face
    *(((x, -0.22), (0.10, 0.020), (0.27, 0.20, 0.16)) for x in (-0.155, 0.155)),  # brows
    *(((x, -0.095), (0.08, 0.055), (0.96, 0.94, 0.92)) for x in (-0.155, 0.155)),  # eyes
    *(((x, -0.095), (0.05, 0.055), (0.20, 0.14, 0.12)) for x in (-0.155, 0.155)),
    ((-0.02, 0.04), (0.018, 0.11), (0.76, 0.57, 0.47)),  # nose
    ((0.00, 0.16), (0.06, 0.015), (0.63, 0.43, 0.35)),
    ((0.00, 0.29), (0.14, 0.050), (0.71, 0.31, 0.31)),  # mouth
    ((0.00, 0.29), (0.14, 0.010), (0.47, 0.20, 0.20)),
]


def drawn_faces(
    faces: Sequence[tuple[float, float, float]], side: int = 120, ellipses: int = len(ELLIPSES)
) -> Images:
    """A picture for each face, by the x and y of its centre and its height, in shares of the side.

    Args:
        faces: one per picture.
        side: of the pictures, in pixels.
        ellipses: how many are drawn; with two, hair and skin.
    """
    return Images(torch.stack([_picture(*face, side, ellipses) for face in faces]))


def _picture(x: float, y: float, height: float, side: int, ellipses: int) -> Tensor:
    # Each pixel is the mean of 3 x 3 places.
    places = (torch.arange(3 * side) + 0.5) / (3 * side)
    across, down = (places - x) / height, (places[:, None] - y) / height
    picture = torch.tensor([0.35, 0.47, 0.63])[:, None, None].expand(-1, 3 * side, 3 * side)
    for (x0, y0), (half_width, half_height), colour in ELLIPSES[:ellipses]:
        inside = ((across - x0) / half_width) ** 2 + ((down - y0) / half_height) ** 2 < 1
        picture = torch.where(inside, torch.tensor(colour)[:, None, None], picture)
    return torch.nn.functional.avg_pool2d(picture[None], 3)[0]
