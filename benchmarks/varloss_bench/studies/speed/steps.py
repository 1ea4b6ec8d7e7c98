"""Time steps of losses on request: one JSON object a line in, one out. A script that needs varloss and torch alone.

`before.py` starts it once for each checkout, with that checkout first on the path.
"""

import json
import sys
import time
from typing import Any

import torch

import varloss
from varloss import functional


def main() -> None:
    """Answer each request with the seconds of this thread for a step, and with what the step found."""
    torch.set_num_threads(1)
    print(json.dumps({"file": varloss.__file__}), flush=True)
    loss: Any = None
    for line in sys.stdin:
        request = json.loads(line)
        try:
            if "loss" in request:
                torch.manual_seed(0)
                n, d = request["n"], request["d"]
                views = [torch.randn(n, d, requires_grad=True) for _ in range(2)]
                loss = eval(request["loss"], {"varloss": varloss, "functional": functional, "torch": torch, "d": d})
                value = loss(*views)
            started = time.thread_time()
            for _ in range(request["steps"]):
                for view in views:
                    view.grad = None
                value = loss(*views)
                value.backward()
            took = (time.thread_time() - started) / request["steps"]
            gradients = [0.0 if view.grad is None else view.grad.norm().item() for view in views]
            answer = {"seconds": took, "found": [value.item(), *gradients]}
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
