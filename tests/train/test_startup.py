"""What every process of a run loads before it can do anything."""

import sys

import pytest
from harness import run_command

# Each is slow to load; what needs one of them loads it then.
_DEAR = ("matplotlib", "mlflow", "sympy", "torch.distributed.fsdp", "torch.onnx", "torchvision")


@pytest.mark.program
@pytest.mark.parametrize("module", ["train.job", "train.fit"])
def test_training_starts_without_what_it_may_not_need(module: str) -> None:
    program = f"import sys, {module}; print([name for name in {_DEAR!r} if name in sys.modules])"
    done = run_command([sys.executable, "-c", program])
    assert done.exit_code == 0, done.stderr
    assert done.stdout.strip() == "[]"
