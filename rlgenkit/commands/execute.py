"""Child process of `rlgenkit run`: execute one notebook through papermill, log everything.

Usage: python -m rlgenkit.commands.execute SPEC.json (written by `rlgenkit.commands.run`).
It has its own process so that a hanging or killed kernel never takes the caller with it.
"""

import json
import logging
import os
import sys
import tempfile
import threading
import time
from pathlib import Path

from .committed import source_hash

DEAD_KERNEL = 138  # papermill's own exit code for a kernel that vanished
DRAIN_S = 600  # a cell that printed thousands of lines has ended before they all are read


class Screen:
    """Progress for a person: a line per section and note; in a terminal one line, rewritten."""

    def __init__(self, total: int) -> None:
        self.total, self.start, self.index = total, time.monotonic(), 0
        self.section, self.live = "", sys.stderr.isatty()

    def line(self, text: str) -> None:
        """Write one progress line: cell, elapsed time, text."""
        seconds = int(time.monotonic() - self.start)
        row = f"[{self.index:3d}/{self.total}] {seconds // 60:02d}:{seconds % 60:02d}  {text}"
        sys.stderr.write(f"\r\x1b[K{row[:100]}" if self.live else f"{row}\n")
        sys.stderr.flush()

    def on_cell(self, cell, cell_index: int) -> None:
        """Hook of nbclient, before each code cell."""
        section, self.index = cell.metadata.get("rlgenkit_section", self.section), cell_index + 1
        if self.live or section != self.section:
            self.section = section
            self.line(section)

    def on_message(self, message: dict) -> None:
        """The workbook's progress lines: displays that are plain text and nothing else."""
        data = message["content"].get("data", {})
        if message["msg_type"] in ("display_data", "update_display_data") and set(data) == {
            "text/plain"
        }:
            self.line(data["text/plain"].strip().splitlines()[-1])


def transport(folder: str) -> dict:
    """Settings of a kernel that talks through socket files in `folder`, where the system has them.

    A port is chosen by one process and opened by another: of many kernels that start together,
    two can be given the same one.
    """
    import zmq

    if not zmq.has("ipc"):  # Windows
        return {}
    return {"transport": "ipc", "ip": str(Path(folder) / "kernel")}


def register_engine(screen: Screen, log, folder: str) -> str:
    """A papermill engine that shows updates of a display live (papermill drops them) and keeps the
    kernel's own stderr in the file `log`, its sockets in `folder`; returns the engine's name."""
    from papermill.clientwrap import PapermillNotebookClient
    from papermill.engines import NBClientEngine, papermill_engines
    from traitlets.config import Config

    class LiveClient(PapermillNotebookClient):
        def process_message(self, msg, cell, cell_index):
            screen.on_message(msg)
            return super().process_message(msg, cell, cell_index)

    class LiveEngine(NBClientEngine):
        @classmethod
        def execute_managed_notebook(cls, nb_man, kernel_name, start_timeout=60, **settings):
            settings = {
                k: v for k, v in settings.items() if k not in ("input_path", "execution_timeout")
            }
            LiveClient(
                nb_man,
                kernel_name=kernel_name,
                startup_timeout=start_timeout,
                timeout=None,
                iopub_timeout=DRAIN_S,
                raise_on_iopub_timeout=False,
                config=Config({"ConnectionFileMixin": transport(folder)}),
                log=logging.getLogger("papermill"),
                **settings,
            ).execute(stderr=log)

    papermill_engines.register("live", LiveEngine)
    return "live"


def label_sections(nb) -> None:
    """Write into each code cell the last level-2 heading above it (dropped when normalizing)."""
    section = "start"
    for cell in nb.cells:
        if cell.cell_type == "markdown":
            heads = [r[3:].strip() for r in cell.source.splitlines() if r.startswith("## ")]
            section = heads[-1] if heads else section
        else:
            cell.metadata["rlgenkit_section"] = section


def main(spec: dict) -> int:
    """Execute; the exit code is 0, 1 (error in a cell; its name goes to error.json) or 138."""
    import nbformat
    import papermill
    from nbclient.exceptions import DeadKernelError
    from papermill.exceptions import PapermillExecutionError

    out = Path(spec["out_dir"])
    log = open(out / "run.log", "a", encoding="utf-8")
    handler = logging.StreamHandler(log)
    logging.getLogger("papermill").addHandler(handler)
    logging.getLogger("papermill").propagate = False
    nb = nbformat.read(spec["notebook"], as_version=4)
    # The kernel notes this in the results.
    os.environ["RLGENKIT_SOURCE"] = f"{Path(spec['name']).stem} {source_hash(nb)}"
    label_sections(nb)
    source, target = out / "source.ipynb", out / spec["name"]
    nbformat.write(nb, source)
    screen, sockets = Screen(len(nb.cells)), tempfile.TemporaryDirectory(prefix="kernel-")
    try:
        papermill.execute_notebook(
            str(source),
            str(target),
            parameters=spec["parameters"],
            progress_bar=False,
            log_output=True,
            start_timeout=120,
            engine_name=register_engine(screen, log, sockets.name),
            cwd=spec["cwd"],
            autosave_cell_every=30,
            on_cell_start=screen.on_cell,
            kernel_name="python3",
            language="python",
        )
    except PapermillExecutionError as error:
        log.write(str(error))
        row = {"ename": error.ename, "evalue": error.evalue, "cell": error.cell_index}
        (out / "error.json").write_text(json.dumps(row), encoding="utf-8")
        return 1
    except DeadKernelError as error:
        log.write(f"DeadKernelError: {error}\n")
        return DEAD_KERNEL
    finally:
        if screen.live:
            sys.stderr.write("\n")
        source.unlink(missing_ok=True)
        sockets.cleanup()
        log.flush()
    return 0


def end_with_parent() -> None:
    """End this process soon after the one that started it has died; its kernel then ends too."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(143)

    threading.Thread(target=watch, daemon=True).start()


def cpu_seconds() -> float | None:
    """CPU seconds of this process and of the kernels that it started and that have ended."""
    try:
        import resource
    except ImportError:  # not on Windows
        return None
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return round(sum(u.ru_utime + u.ru_stime for u in used), 1)


if __name__ == "__main__":
    end_with_parent()
    begin, given = time.time_ns(), json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    code = main(given)
    usage = {"begin_ns": begin, "cpu_seconds": cpu_seconds()}
    (Path(given["out_dir"]) / "usage.json").write_text(json.dumps(usage), encoding="utf-8")
    sys.exit(code)
