"""Kernels that start warm: one process imports what notebooks import, and forks for each of them.

With `started()` around it, whatever starts the kernel `python3` gets such a kernel: a small process
(this file with two arguments) asks the warm one for a fork and stays as long as the kernel should.
Kernels work in a scratch folder, so that no run of the checkout is touched. Needs os.fork.
"""

import contextlib
import json
import os
import signal
import socket
import sys

# What a notebook would spend most of its time with: 5 to 8 CPU seconds.
IMPORTS = """
ipykernel.kernelapp matplotlib_inline.backend_inline IPython.core.pylabtools fastjsonschema
torch torch.nn.functional scipy.stats matplotlib.pyplot PIL.JpegImagePlugin safetensors.torch peft
transformers.models.auto.modeling_auto transformers.models.clip.modeling_clip
transformers.models.llama.modeling_llama transformers.models.t5.modeling_t5
transformers.models.t5.tokenization_t5 transformers.generation.utils
diffusers.pipelines.pixart_alpha.pipeline_pixart_alpha
diffusers.models.autoencoders.autoencoder_kl diffusers.models.transformers.transformer_flux
rlgenkit.workbook.run rlgenkit.workbook.plots rlgenkit.models.images rlgenkit.rewards.proxy
""".split()


@contextlib.contextmanager
def started(**environment: str):
    """Run the warm process, with these variables in its environment; yields the environment in
    which `python3` names its kernels."""
    import subprocess
    import tempfile
    from pathlib import Path

    root = Path(__file__).resolve().parents[1]
    with tempfile.TemporaryDirectory(prefix="kernels-") as name:
        folder = Path(name)
        spec = folder / "kernels" / "python3" / "kernel.json"
        spec.parent.mkdir(parents=True)
        argv = [
            sys.executable,
            "-I",
            "-S",
            __file__,
            str(folder / "socket"),
            "-f",
            "{connection_file}",
        ]
        words = {"argv": argv, "display_name": "Python 3", "language": "python"}
        spec.write_text(json.dumps(words), encoding="utf-8")
        (folder / "notebooks").mkdir()
        (folder / "data").symlink_to(root / "data")
        paths = os.pathsep.join(filter(None, [str(root), os.environ.get("PYTHONPATH")]))
        env = {**os.environ, "PYTHONPATH": paths, **environment}
        command = [sys.executable, __file__, str(folder / "socket")]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        with subprocess.Popen(command, env=env, cwd=folder / "notebooks", **pipes) as warm:
            if warm.stdout.readline() != b"warm\n":
                raise RuntimeError("the warm process did not start")
            yield {**env, "JUPYTER_PATH": str(folder)}
            warm.stdin.close()  # ends it


def serve(path: str) -> None:
    """Import, then fork a kernel for whoever connects to the socket `path`, until stdin ends."""
    import gc
    import importlib
    import select

    for module in IMPORTS:
        importlib.import_module(module)
    gc.collect()
    gc.freeze()  # what stands by now stays shared between the forks
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path)
        server.listen()
        os.write(1, b"warm\n")
        for stream in (1, 2):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
        while sys.stdin not in (ready := select.select([server, sys.stdin], [], [], 1)[0]):
            if ready:
                caller = server.accept()[0]
                if os.fork() == 0:
                    server.close()
                    be_kernel(caller)
                caller.close()
            with contextlib.suppress(ChildProcessError):
                os.waitpid(-1, os.WNOHANG)


def be_kernel(caller: socket.socket) -> None:
    """The fork: a kernel, until it is told to end or `caller` has gone."""
    import threading

    from ipykernel.kernelapp import launch_new_instance

    def watch() -> None:
        while caller.recv(1):
            os.kill(os.getpid(), signal.SIGINT)
        os._exit(0)

    os.environ["JPY_PARENT_PID"] = str(os.getppid())  # it also ends with the warm process
    given = caller.recv(1 << 16).decode().split("\n")
    threading.Thread(target=watch, daemon=True).start()
    launch_new_instance(argv=[*given, "--log-level=ERROR", "--IPKernelApp.quiet=True"])
    os._exit(0)


def ask(path: str, *given: str) -> None:
    """What Jupyter takes for the kernel, with its arguments; lives as long as the fork does."""
    with socket.socket(socket.AF_UNIX) as warm:
        warm.connect(path)
        warm.sendall("\n".join(given).encode())
        signal.signal(signal.SIGINT, lambda *_: warm.sendall(b"i"))
        warm.recv(1)


if __name__ == "__main__":
    serve(sys.argv[1]) if len(sys.argv) == 2 else ask(*sys.argv[1:])
