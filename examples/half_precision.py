"""A weight file of half the size: python examples/half_precision.py runs/mine small.safetensors

Convolutions are stored as float16; BatchNorm's values, which are few and span many magnitudes, stay float32.
Loading makes float32 of all.
"""

import sys

from safetensors.torch import save_file

import zoo_seg

folder, path = sys.argv[1:]
tensors = zoo_seg.from_pretrained(folder).state_dict()
tensors = {name: tensor.half() if tensor.ndim == 4 else tensor for name, tensor in tensors.items()}
save_file(tensors, path)
print(f"{path}: {sum(tensor.nbytes for tensor in tensors.values()) / 1e6:.2f} MB")
