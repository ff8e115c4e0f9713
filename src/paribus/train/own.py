"""The place for an optimiser of your own: `optimizer.kind: own.NAME` trains the block matrices with the class NAME of here.

It is a `torch.optim.Optimizer`, as every library's are:

- `__init__(self, params, lr, ...)`: what else it takes are keys of `optimizer.arguments`;
- `step(self)`: moves each parameter of `self.param_groups` that has a gradient by `group["lr"]`; no closure;
- what it remembers of a parameter is in `self.state[parameter]`: tensors, numbers and texts, in lists or dicts.

docs/optimizers.md has an example in ten lines.
"""

import torch  # noqa: F401  for the classes that are put here
