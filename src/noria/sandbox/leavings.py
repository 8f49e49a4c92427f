"""Runs INSIDE the sandbox, as a part of `server.py`: lays out a job's workspace, reads what it left, and empties it.

Only the standard library. Whatever a job left is read by a child that is forked for it, never through a link.
"""

import base64
import os
import stat

MAX_FILES, MAX_PATH = 4096, 255


def write_file(path, content):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "wb") as stream:
        stream.write(content)
    if content.startswith((b"#!", b"\x7fELF")):  # files travel as bytes alone; what is a program stays one
        os.chmod(path, 0o755)


def holds_anything(root):
    open_up(root)
    with os.scandir(root) as entries:
        return any(True for _ in entries)


def read_workspace(root, most_bytes):
    """Regular files only, never through a symbolic link, sorted; what was left out is named with its reason."""
    files: dict = {}
    skipped: dict = {}
    total, waiting = 0, [""]
    open_up(root)
    while waiting and len(files) + len(skipped) < MAX_FILES:
        folder = waiting.pop()
        try:
            entries = sorted(os.scandir(os.path.join(root, folder)), key=lambda entry: entry.name)
        except OSError as error:
            skipped[folder] = error.strerror
            continue
        folders = []
        for entry in entries:
            path = os.path.join(folder, entry.name)
            if is_plain(path) and entry.is_dir(follow_symlinks=False):
                folders.append(path)
                continue
            content = read_file(os.path.join(root, path), most_bytes - total) if is_plain(path) else "no plain path"
            if isinstance(content, str):
                skipped[spelled(path)] = content
            else:
                files[path] = base64.b64encode(content).decode()
                total += len(content)
            if len(files) + len(skipped) >= MAX_FILES:
                skipped["..."] = "more than " + str(MAX_FILES) + " files"
                break
        waiting += reversed(folders)
    return {"files": files, "skipped": skipped}


def spelled(path):
    """In letters that any text can hold."""
    return path.encode("unicode_escape").decode()[:MAX_PATH]


def is_plain(path):
    """Short, and of characters that can be shown: no controls, no bytes that are no UTF-8."""
    try:
        return len(path.encode()) <= MAX_PATH and min(path) >= " " and "\x7f" not in path
    except UnicodeEncodeError:
        return False


def read_file(path, most_bytes):
    """Its bytes, or why not."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        return error.strerror
    try:
        info = os.fstat(fd)
        if not stat.S_ISREG(info.st_mode):
            return "not a regular file"
        return os.pread(fd, info.st_size, 0) if info.st_size <= most_bytes else "half of workspace_bytes reached"
    finally:
        os.close(fd)


def empty(root):
    """Deletes all in it. Folders in folders are first moved up: a nest may be deeper than any path or stack allows."""
    open_up(root)
    top = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    number = 0
    while names := os.listdir(top):
        for name in names:
            if not is_folder(name, top):
                os.unlink(name, dir_fd=top)
                continue
            open_up(name, top)
            folder = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=top)
            for inner in os.listdir(folder):
                if not is_folder(inner, folder):
                    os.unlink(inner, dir_fd=folder)
                    continue
                open_up(inner, folder)
                while os.path.lexists(root + "/" + str(number)):
                    number += 1
                os.rename(inner, str(number), src_dir_fd=folder, dst_dir_fd=top)
            os.close(folder)
            os.rmdir(name, dir_fd=top)
    os.close(top)


def open_up(folder, parent_fd=None):
    """A candidate may have taken its own folders' permissions; where it could not, there is nothing to do."""
    if stat.S_IMODE(os.stat(folder, dir_fd=parent_fd).st_mode) & 0o700 != 0o700:
        os.chmod(folder, 0o700, dir_fd=parent_fd)


def is_folder(name, parent_fd):
    return stat.S_ISDIR(os.lstat(name, dir_fd=parent_fd).st_mode)
