"""How alike two pictures are: pixel by pixel (PSNR) and in structure (SSIM). Pictures are [b, c, h, w] in [-1, 1]."""

import torch
import torch.nn.functional as F
from torch import Tensor

WINDOW, SIGMA = 11, 1.5                           # pixels
K1, K2 = 0.01, 0.03


def psnr(x: Tensor, y: Tensor) -> Tensor:
    """Peak signal to noise ratio of each pair in dB, [b]; infinite where they are equal."""
    return -10 * (brightness(x) - brightness(y)).square().flatten(1).mean(dim=1).log10()


def ssim(x: Tensor, y: Tensor) -> Tensor:
    """Structural similarity of each pair (Wang et al. 2004, eq. 13), [b]: 1 where they are equal.

    The means, variances and covariance are those of a Gaussian window of 11 pixels that lies wholly in the picture;
    the mean is over all its places and over the colours (Wang et al. have one channel).
    """
    if min(x.shape[2:]) < WINDOW:
        raise ValueError(f"pictures of {x.shape[3]}x{x.shape[2]}: SSIM's window takes {WINDOW} pixels a side")
    x, y = brightness(x), brightness(y)
    mean_x, mean_y = blurred(x), blurred(y)
    var_x, var_y = blurred(x * x) - mean_x * mean_x, blurred(y * y) - mean_y * mean_y
    cov = blurred(x * y) - mean_x * mean_y
    c1, c2 = K1 ** 2, K2 ** 2
    luminance = (2 * mean_x * mean_y + c1) / (mean_x.square() + mean_y.square() + c1)
    structure = (2 * cov + c2) / (var_x + var_y + c2)
    return (luminance * structure).flatten(1).mean(dim=1)


def brightness(x: Tensor) -> Tensor:
    """From 0 = black to 1 = white, in float64. SSIM compares means, and is another measure if grey is zero."""
    return (x.double() + 1) / 2


def blurred(x: Tensor) -> Tensor:
    """[b, c, h, w] -> [b, c, h - 10, w - 10]: weighted means under the window, one direction after the other."""
    places = torch.arange(WINDOW, dtype=x.dtype, device=x.device) - WINDOW // 2
    weights = (-places.square() / (2 * SIGMA ** 2)).exp()
    weights = weights / weights.sum()
    flat = x.flatten(0, 1)[:, None]               # [b c, 1, h, w]
    flat = F.conv2d(F.conv2d(flat, weights.view(1, 1, -1, 1)), weights.view(1, 1, 1, -1))
    return flat.view(*x.shape[:2], *flat.shape[2:])
