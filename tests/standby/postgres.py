"""A real PostgreSQL in a temporary folder, started by the tests: it may be stopped, and started again."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

import psycopg

from tests.fleet.processes import free_port

BINARIES = "/usr/lib/postgresql"
PASSWORD = "correct horse"
USER = "triptych"
TIMEOUT_S = 60


class Postgres:
    """A server on a socket of its own (any local user), and on a port of 127.0.0.1 (with the password)."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="triptych-postgres-"))
        self.port = free_port()
        self._schemas = 0

    def __enter__(self) -> Postgres:
        if os.getuid() == 0:  # which PostgreSQL refuses
            shutil.chown(self.folder, "postgres", "postgres")
        password = self.folder / "password"
        password.write_text(PASSWORD)
        password.chmod(0o644)
        auth = ("--auth-local=trust", "--auth-host=scram-sha-256", f"--pwfile={password}")
        self._run("initdb", "-D", str(self.folder / "data"), "-U", USER, "-E", "UTF8", "--locale=C.UTF-8", *auth)
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.stop()
        shutil.rmtree(self.folder)

    def start(self) -> None:
        """Start it, and return when it answers."""
        settings = f"-k {self.folder} -p {self.port} -c listen_addresses=127.0.0.1 -c max_connections=40"
        log = str(self.folder / "log")
        self._run(
            "pg_ctl", "-D", str(self.folder / "data"), "-w", "-t", str(TIMEOUT_S), "-l", log, "-o", settings, "start"
        )

    def stop(self) -> None:
        """Stop it as a crash would: nobody is told."""
        self._run("pg_ctl", "-D", str(self.folder / "data"), "-w", "-t", str(TIMEOUT_S), "-m", "immediate", "stop")

    def url(self, schema: str, host: str = "", port: int = 0) -> str:
        """Of a schema: through the socket, or through a port."""
        where = f"{host}:{port or self.port}/postgres?" if host else f"/postgres?host={self.folder}&port={self.port}&"
        return f"postgresql://{USER}@{where}options=-csearch_path%3D{schema}"

    def new_schema(self) -> str:
        """An empty one."""
        self._schemas += 1
        name = f"s{self._schemas}"
        self.execute(f"CREATE SCHEMA {name}")
        return name

    def execute(self, sql: str, schema: str = "public") -> list[tuple[object, ...]]:
        """Run a statement beside the controllers; its rows."""
        with psycopg.connect(self.url(schema), autocommit=True) as db:
            found = db.execute(sql.encode())
            return found.fetchall() if found.description else []

    def _run(self, program: str, *arguments: str) -> None:
        newest = max(Path(BINARIES).glob("*/bin"), key=lambda path: int(path.parent.name))
        user: Sequence[str] = ()
        if os.getuid() == 0:
            user = ("setpriv", "--reuid", "postgres", "--regid", "postgres", "--clear-groups")
        done = subprocess.run(
            [*user, str(newest / program), *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=2 * TIMEOUT_S,
            cwd="/",
        )
        assert done.returncode == 0, done.stdout
