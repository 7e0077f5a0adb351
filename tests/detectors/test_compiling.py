from __future__ import annotations

import subprocess
import sys
from typing import Any

import helpers
import pytest
import torch
from torch import Tensor, nn

from calkd_det.detectors.compiling import outside_compiler


@pytest.mark.slow
@pytest.mark.skipif(helpers.TORCH_2_1, reason='torch 2.1 imports the compiler itself')
def test_importing_the_package_does_not_import_the_compiler() -> None:
    code = (
        'import sys, mmdet.models, mmdet.datasets, mmcv.ops; '
        "assert 'torch._dynamo' not in sys.modules, 'the stack imports it'; "
        'import calkd_det; '
        "print('torch._dynamo' in sys.modules)"
    )
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith('False')


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 2)
        self.hooked = 0

    def forward(self, x: Tensor) -> Tensor:
        return self.step(x.sin()).cos()

    @outside_compiler
    def step(self, x: Tensor) -> Tensor:
        """Compute with a hook, which the compiler does not see."""
        with self.linear.register_forward_hook(self._count):
            return self.linear(x).exp()

    def _count(self, *args: Any) -> None:
        self.hooked += 1


@pytest.mark.parametrize('called_before', [False, True])
def test_the_function_runs_as_written_and_the_rest_is_compiled(called_before: bool) -> None:
    graphs: list[list[str]] = []

    def backend(graph: torch.fx.GraphModule, inputs: list) -> torch.fx.GraphModule:
        graphs.append([str(node.target) for node in graph.graph.nodes if 'call' in node.op])
        return graph

    torch._dynamo.reset()
    network, x = Network(), torch.rand(1, 2)
    expected = Network.forward(network, x) if called_before else None
    compiled = torch.compile(network, backend=backend)
    outputs = [compiled(x) for _ in range(3)]
    assert graphs == [['sin'], ['cos']]
    assert network.hooked == 3 + called_before
    expected = network(x) if expected is None else expected
    assert all(torch.equal(output, expected) for output in outputs)
