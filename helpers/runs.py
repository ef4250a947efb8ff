"""Files under `runs/`: tensors and the settings that made them, written atomically, trusted if they still match."""

import hashlib
import json
import os
import tempfile
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

ROOT = Path(__file__).resolve().parent.parent
RUNS, FIGURES = (ROOT / (os.environ.get(f"UNLEARNING_{name.upper()}") or name) for name in ("runs", "figures"))


def key(settings):
    """Twelve hex digits that change whenever a setting does."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]


def replace_file(path, write):
    """Call `write(temporary path)`, then move the finished file to `path`: no reader ever sees half of it.

    Raises:
        OSError: it could not be written; names the path and the reason.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    try:
        write(Path(temporary))
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise OSError(f"could not write {os.path.relpath(path, RUNS.parent)}: {reason}") from error
    finally:
        Path(temporary).unlink(missing_ok=True)


def sha256(path):
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def save(path, settings, tensors, **record):
    """Write `path.safetensors` and `path.json` with the settings, the record, the tensors' checksum and its own.

    The tensors wait as a draft until the record that names their checksum is in place: a run that is killed in between
    leaves either the old pair or the new one.
    """
    record_file, tensor_file, draft = _files(path)
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    replace_file(draft, lambda file: save_file(tensors, file))
    record = {"settings": settings, "sha256": sha256(draft), **record}
    text = json.dumps({**record, "own sha256": own_sha256(record)}, indent=1)
    replace_file(record_file, lambda file: file.write_text(text))
    try:
        os.replace(draft, tensor_file)
    except FileNotFoundError:
        if not has(tensor_file, record["sha256"]):  # else another process has moved it there
            raise


def own_sha256(record):
    """The checksum of a record's content; the same for what `json` reads back."""
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def _files(path):
    """The record, the tensors and their draft."""
    return (path.with_name(path.name + ending) for ending in (".json", ".safetensors", ".draft.safetensors"))


def has(file, digest):
    """Whether `file` is there with that checksum."""
    with suppress(FileNotFoundError):
        return sha256(file) == digest
    return False


def load_record(path, settings):
    """The record saved at `path` if its settings are these and the tensors are intact, else None; says why not."""
    record, problem = _look(path, settings)
    if problem:
        print(f"{path.name} {problem}")
    return record


def _look(path, settings, locked=False):
    """The record at `path`, None if it is of no use, and what is wrong then; only who has the lock moves a draft."""
    record_file, tensor_file, draft = _files(path)
    if not record_file.exists():
        return None, ""
    try:
        record = json.loads(record_file.read_text())
        own = record.pop("own sha256", None)  # records of older versions have none
        if own not in (None, own_sha256(record)):
            return None, "has a record that does not match its checksum"
        if record["settings"] != json.loads(json.dumps(settings)):
            return None, "was made with other settings"
        if has(tensor_file, record["sha256"]):
            return record, ""
        if has(draft, record["sha256"]):  # a save was cut short, or is about to move it
            if not locked:
                with alone(path):
                    return _look(path, settings, locked=True)
            os.replace(draft, tensor_file)
        if has(tensor_file, record["sha256"]):
            return record, ""
        return None, "does not match its checksum" if tensor_file.exists() else "lacks its tensors"
    except (OSError, ValueError, KeyError, TypeError) as error:
        return None, f"cannot be read ({type(error).__name__})"


def load(path, settings):
    """The `(tensors, record)` saved at `path`, or None if nothing usable is there; says why it does not use a file."""
    record = load_record(path, settings)
    return record and (load_file(path.with_name(path.name + ".safetensors")), record)


@contextmanager
def alone(path):
    """Keep other processes from making `path` at the same time; says so where it has to wait for one that does."""
    lock = FileLock(path.with_name(f".{path.name}.lock"))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            print(f"{path.name} is being made by another process: waiting for it")
            lock.acquire()
    except OSError as error:
        raise OSError(f"could not write {os.path.relpath(path, RUNS.parent)}: {error.strerror}") from error
    try:
        yield
    finally:
        lock.release()


def once(path, settings, make):
    """The record at `path` if it was made with `settings`, else of what `make()` returns: tensors and a record to keep.

    Of two processes that ask at once, one makes it and the other waits.
    """
    record, _ = _look(path, settings)
    if record is None:
        with alone(path):
            record, problem = _look(path, settings, locked=True)
            if record is None:
                if problem:
                    print(f"{path.name} {problem}: making it again")
                tensors, made = make()
                save(path, settings, tensors, **made)
                record, _ = _look(path, settings, locked=True)
    return record


def remember(path, settings, make):
    """The tensors at `path` if they were made with `settings`, else those that `make()` returns, kept there."""
    once(path, settings, lambda: (make(), {}))
    return load(path, settings)[0]
