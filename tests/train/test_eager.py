"""Training leaves PyTorch's compiler out, and who compiles still finds it."""

import subprocess
import sys
import textwrap

import pytest

# In a process of its own: in this one somebody may have loaded the compiler.
TRAIN_THEN_COMPILE = textwrap.dedent(
    """
    import inspect, sys, tempfile
    import torch, torch.distributed
    from torch import nn
    from torch.nn.parallel import DistributedDataParallel
    from train.eager import leave_compiler_out
    from train.optim import build_optimizer
    from train.recipes import get_recipe

    with tempfile.NamedTemporaryFile() as file:
        torch.distributed.init_process_group(
            "gloo", init_method=f"file://{file.name}", rank=0, world_size=1
        )
    leave_compiler_out()
    for name in ("gd", "sgd", "adam", "adamw", "rmsprop", "adagrad", "muon"):
        for fused in (False, True):
            changes = {"optim": {"name": name}, "hardware": {"fused": fused}}
            config = get_recipe("digits").with_changes(changes, "test")
            net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(8, 3))
            before = [weight.clone() for weight in net.parameters()]
            parallel = DistributedDataParallel(net)
            optimizer = build_optimizer(config, net)
            for _ in range(2):
                optimizer.zero_grad(set_to_none=True)
                parallel(torch.ones(2, 1, 4, 4)).square().sum().backward()
                nn.utils.clip_grad_norm_(net.parameters(), 1.0)
                optimizer.step()
            optimizer.load_state_dict(optimizer.state_dict())
            assert not any(map(torch.equal, before, net.parameters())), name
    inspect.getmodule(inspect.currentframe())
    loaded = [name for name in sys.modules if name.startswith("torch._dynamo.")]
    assert loaded == [], loaded

    double = torch.compile(lambda x: 2 * x, backend="eager", fullgraph=True)
    assert double(torch.ones(3)).tolist() == [2, 2, 2]
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    torch.distributed.destroy_process_group()
    """
)


@pytest.mark.slow
def test_optimizers_and_ddp_do_not_load_the_compiler_and_compile_does() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", TRAIN_THEN_COMPILE],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
