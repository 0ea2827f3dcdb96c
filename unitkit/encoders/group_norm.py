"""Group norm of the first convolution from the moments of its windows: exact in padded batches and for any length.

With one group per channel the norm needs the mean and variance of w·x over all windows x of the recording: w·mean(x)
and wᵀ cov(x) w. So ten sums and a 10 × 10 matrix stand for hours of audio, and neither padding nor windowing enters.
"""

import torch
from torch import Tensor

CHUNK_WINDOWS = 1 << 15  # windows per matrix product; counted from the start, whatever the blocks


class WindowSums:
    """Count, sum (kernel,) and second moments (kernel, kernel) of a convolution's windows, in float64 on the CPU.

    Windows that straddle blocks are counted once, and the sums do not depend, to the bit, on how blocks are cut.
    """

    def __init__(self, kernel: int = 10, stride: int = 5) -> None:
        """Nothing seen yet; the defaults are those of HuBERT and wav2vec 2.0."""
        self.kernel, self.stride = kernel, stride
        self._sums = self._nothing()
        self._pending: list[Tensor] = []  # samples whose windows are not yet counted
        self._n_pending = 0

    def add(self, block: Tensor) -> None:
        """Take in the next samples (n,) of the recording, as the model sees them: normalised and padded."""
        step = CHUNK_WINDOWS * self.stride
        chunk = step + max(0, self.kernel - self.stride)
        for part in block.detach().split(step):  # a block may be hours long: never all of it in double precision
            self._pending.append(part.to("cpu", torch.float64))
            self._n_pending += len(part)
            if self._n_pending >= chunk:
                samples = torch.cat(self._pending)
                self._sums = _plus(self._sums, self._moments(samples[:chunk]))
                self._pending, self._n_pending = [samples[step:]], len(samples) - step

    def affine(self, conv_weight: Tensor, gn_weight: Tensor, gn_bias: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        """(scale, shift), (channels,) float64 on the CPU: group norm = scale * (convolution without bias) + shift.

        `conv_weight` is (channels, 1, kernel). A bias of the convolution has no say: the norm takes it out again.
        """
        rest = torch.cat(self._pending) if self._pending else torch.zeros(0, dtype=torch.float64)
        count, total, second = _plus(self._sums, self._moments(rest))
        if not count:
            raise ValueError(f"a wav of {len(rest)} samples has no window of {self.kernel} samples to take a norm of")
        weight = conv_weight.detach().to("cpu", torch.float64).reshape(-1, self.kernel)
        mean = total / count
        covariance = second / count - torch.outer(mean, mean)
        variance = ((weight @ covariance) * weight).sum(dim=1).clamp_min(0)
        scale = gn_weight.detach().to("cpu", torch.float64) / torch.sqrt(variance + eps)
        return scale, gn_bias.detach().to("cpu", torch.float64) - scale * (weight @ mean)

    def _moments(self, samples: Tensor) -> tuple[int, Tensor, Tensor]:
        if len(samples) < self.kernel:
            return self._nothing()
        windows = samples.unfold(0, self.kernel, self.stride).contiguous()  # (windows, kernel)
        return len(windows), windows.sum(dim=0), windows.T @ windows

    def _nothing(self) -> tuple[int, Tensor, Tensor]:
        zeros = torch.zeros(self.kernel, self.kernel, dtype=torch.float64)
        return 0, zeros[0].clone(), zeros


def _plus(left: tuple[int, Tensor, Tensor], right: tuple[int, Tensor, Tensor]) -> tuple[int, Tensor, Tensor]:
    return left[0] + right[0], left[1] + right[1], left[2] + right[2]
