import torch


class QuantizedTensor(torch.Tensor):
    """No tensor of the stub is one."""
