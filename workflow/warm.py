"""Run programs as forks of one process that has imported the large libraries, since importing them takes seconds.

`warm.py --serve FOLDER COMMAND...` is that process: it starts COMMAND, imports, and serves until COMMAND ends. Its
socket is in FOLDER, which must be empty and open to this user alone. Under COMMAND `warm.py PROGRAM ARGUMENTS...` runs
a Python program (a path, or `-m` and a module) as its fork, with the caller's environment, folder and output; the
caller ends with the fork and the fork with the caller. A notebook's kernel starts in the same way. Linux only:
elsewhere forking a process that uses system libraries is not safe.
"""

import ctypes
import json
import os
import signal
import socket
import sys

ADDRESS = "UNLEARNING_WARM"  # environment variable: path of the socket
LIBRARIES = [  # of jobs and of notebooks; none may start threads or touch a GPU
    *("execute", "IPython.display", "ipykernel.ipkernel", "ipykernel.kernelapp", "ipywidgets", "matplotlib.pyplot"),
    *("pandas", "safetensors.torch", "scipy.optimize", "scipy.stats", "seaborn", "sklearn.datasets"),
    *("sklearn.linear_model", "sklearn.manifold", "timm", "torch", "torch.optim.lr_scheduler", "torchvision"),
]
PR_SET_PDEATHSIG, PR_SET_NAME = 1, 15


def main():
    words = sys.argv[1:]
    sys.exit(serve(words[1], words[2:]) if words[0] == "--serve" else ask(words))


def ask(words):
    """Let the server run a program; return its exit status, 1 if it was killed."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(os.environ[ADDRESS])
        socket.send_fds(connection, [b"\n"], [0, 1, 2])
        wanted = {"words": words, "folder": os.getcwd(), "environment": dict(os.environ)}
        connection.sendall(json.dumps(wanted).encode() + b"\n")
        status = connection.recv(1)
    return status[0] if status else 1


def serve(folder, command):
    """Run `command`, and beside it a fork for each `ask`; return the exit status of `command`."""
    import select
    import subprocess
    from importlib import import_module

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"{folder}/socket")
        listener.listen(128)
        write_kernel(folder)
        process = subprocess.Popen(command, env={**os.environ, ADDRESS: f"{folder}/socket", "JUPYTER_PATH": folder})
        for name in LIBRARIES:
            import_module(name)
        forks = []
        while process.poll() is None:
            forks = [pid for pid in forks if os.waitpid(pid, os.WNOHANG) == (0, 0)]
            if select.select([listener], [], [], 0.2)[0]:
                connection, _ = listener.accept()
                forks.append(os.fork() or become(connection))
                connection.close()
        for pid in forks:
            os.waitpid(pid, 0)
        return process.returncode


def write_kernel(folder):
    """Describe to Jupyter how a kernel named python3 starts."""
    words = [sys.executable, "-I", "-S", os.path.abspath(__file__), "-m", "ipykernel_launcher"]
    words += ["-f", "{connection_file}", f"--IPKernelApp.parent_handle={os.getpid()}"]  # a kernel ends with its parent
    os.makedirs(f"{folder}/kernels/python3")
    with open(f"{folder}/kernels/python3/kernel.json", "w") as file:
        json.dump({"argv": words, "display_name": "Python 3", "language": "python"}, file)


def become(connection):
    """In a fork: run the program that the other end of `connection` names; never return."""
    import threading
    import traceback

    status = 1
    try:
        words = take_over(connection)
        threading.Thread(target=end_with, args=(connection,), daemon=True).start()
        status = run_program(words)
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        connection.send(bytes([status & 255]))
        os._exit(status)


def take_over(connection):
    """Take output, folder and environment from the caller; return the words of its command."""
    for place, descriptor in enumerate(socket.recv_fds(connection, 1, 3)[1]):
        os.dup2(descriptor, place)
        os.close(descriptor)
    with connection.makefile() as lines:
        wanted = json.loads(lines.readline())
    os.chdir(wanted["folder"])
    os.environ.clear()
    os.environ.update(wanted["environment"])
    return wanted["words"]


def end_with(connection):
    """Wait until the caller ends, which means that it was killed."""
    connection.recv(1)
    os.kill(os.getpid(), signal.SIGKILL)


def run_program(words):
    """Run `-m module arguments...` or `path arguments...` as Python would; 0 if it does not exit by itself."""
    import runpy

    is_module = words[0] == "-m"
    sys.argv = words[is_module:]
    ctypes.CDLL(None).prctl(PR_SET_NAME, os.path.basename(sys.argv[0]).encode())
    if is_module:
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
    else:
        sys.path[0] = os.path.dirname(os.path.abspath(sys.argv[0]))
        runpy.run_path(sys.argv[0], run_name="__main__")
    return 0


if __name__ == "__main__":
    main()
