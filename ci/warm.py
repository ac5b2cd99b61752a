"""Kernels forked from a process that has imported what notebooks import: 5 seconds saved a kernel.

`with kernels(folder):` starts that process and puts a kernel spec named `warm` before Jupyter's own
ones.  The command of the spec is this file: it asks the process for a fork and stands for it, so
that a kernel manager waits for it, interrupts it and ends it like any kernel.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

NAME = "warm"
LOADED = (
    "torch numpy scipy.stats matplotlib.figure ipykernel.kernelapp IPython ipywidgets transformers"
    " diffusers peft rlgenkit.workbook rlgenkit.models rlgenkit.optimizers rlgenkit.rewards"
    " rlgenkit.samplers rlgenkit.worlds transformers.models.clip.modeling_clip"
    " transformers.models.gpt2.modeling_gpt2 diffusers.models.transformers.transformer_sd3"
    " diffusers.models.unets.unet_2d_condition diffusers.schedulers"
).split()


@contextmanager
def kernels(folder: Path) -> Iterator[dict[str, str]]:
    """Environment of a process whose kernels of the name `warm` are forked, while it is open."""
    place = str(folder / "warm.sock")
    spec = folder / "jupyter" / "kernels" / NAME / "kernel.json"
    spec.parent.mkdir(parents=True)
    words = [sys.executable, "-S", str(Path(__file__).resolve()), place, "{connection_file}"]
    spec.write_text(json.dumps({"argv": words, "display_name": NAME, "language": "python"}))
    code = f"from ci.warm import serve; serve({place!r})"
    server = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    try:
        if server.stdout is None or server.stdout.readline().strip() != "ready":
            raise RuntimeError("the process that kernels are forked from did not start")
        yield {"JUPYTER_PATH": str(folder / "jupyter")}
    finally:
        server.kill()
        server.wait()


def serve(place: str) -> None:
    """Import, then fork a kernel for every caller of the socket `place`."""
    import importlib

    for name in LOADED:
        importlib.import_module(name)
    door = socket.socket(socket.AF_UNIX)
    door.bind(place)
    door.listen()
    print("ready", flush=True)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the kernels
    while True:
        caller, _ = door.accept()
        if os.fork() == 0:
            door.close()
            _become(caller)
        caller.close()


def _become(caller: socket.socket) -> None:
    """In the fork: be the kernel that the caller asked for, and end when it goes."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    with caller.makefile() as lines:
        asked = json.loads(lines.readline())
    os.chdir(asked["cwd"])
    os.environ.clear()
    os.environ.update(asked["env"])
    caller.sendall(f"{os.getpid()}\n".encode())
    threading.Thread(target=lambda: (caller.recv(1), os._exit(0)), daemon=True).start()
    sys.argv = ["ipykernel_launcher", "-f", asked["file"]]
    from ipykernel.kernelapp import IPKernelApp

    IPKernelApp.launch_instance()
    os._exit(0)


def _ask(place: str, file: str) -> None:
    """Stand for a forked kernel: pass interrupts on, end with it."""
    server = socket.socket(socket.AF_UNIX)
    server.connect(place)
    asked = {"file": file, "cwd": os.getcwd(), "env": dict(os.environ)}
    server.sendall(json.dumps(asked).encode() + b"\n")
    kernel = int(server.recv(20))
    signal.signal(signal.SIGINT, lambda *_: os.kill(kernel, signal.SIGINT))
    while server.recv(1):
        pass


if __name__ == "__main__":
    _ask(*sys.argv[1:])
