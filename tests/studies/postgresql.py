"""A PostgreSQL server of a test's own, from Debian's package."""

import os
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

from processes import end_with_parent, free_port

USER = "nobody"  # PostgreSQL refuses to run as root
STARTING = 60.0  # seconds


def find_program(name: str) -> str | None:
    """A program of PostgreSQL; Debian puts most of them outside of PATH."""
    found = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    return shutil.which(name) or (str(found[-1]) if found else None)


def is_installed() -> bool:
    return all(map(find_program, ("initdb", "postgres", "pg_isready")))


class Database:
    """A server that ends with this process."""

    def __init__(self) -> None:
        self.place = Path(tempfile.mkdtemp())
        self.port = free_port()
        self.url = f"postgresql+psycopg://study@127.0.0.1:{self.port}/postgres"
        self.user = USER if os.geteuid() == 0 else None
        if self.user:
            shutil.chown(self.place, self.user)
        self._run("initdb", "-D", str(self.place / "data"), "-A", "trust", "-U", "study", "--no-sync")
        self.start()

    def start(self) -> None:
        options = ["-c", "listen_addresses=127.0.0.1", "-c", "fsync=off", "-k", str(self.place)]
        command = [self._program("postgres"), "-D", str(self.place / "data"), "-p", str(self.port), *options]
        with (self.place / "log").open("a") as log:
            self.server = subprocess.Popen(
                command,
                cwd=self.place,
                stdout=log,
                stderr=log,
                user=self.user,
                preexec_fn=end_with_parent,  # noqa: PLW1509  # the test has no other thread
            )
        end = time.monotonic() + STARTING
        while self._run("pg_isready", "-q", "-h", "127.0.0.1", "-p", str(self.port), check=False):
            assert self.server.poll() is None, (self.place / "log").read_text()
            assert time.monotonic() < end
            time.sleep(0.2)

    def stop(self) -> None:
        """Disconnects all clients, and ends the server."""
        self.server.send_signal(signal.SIGINT)
        self.server.wait(60)

    def remove(self) -> None:
        self.stop()
        shutil.rmtree(self.place)

    def _run(self, name: str, *words: str, check: bool = True) -> int:
        command = [self._program(name), *words]
        return subprocess.run(command, check=check, capture_output=True, cwd=self.place, user=self.user).returncode

    def _program(self, name: str) -> str:
        found = find_program(name)
        assert found
        return found
