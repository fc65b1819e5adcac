"""A real PostgreSQL for the tests: a cluster of its own in a temporary folder, gone when they are over.

It listens on a socket in that folder alone and asks for a password, which every URL of the tests carries, so
that each of them would show where one leaks. `tests/conftest.py` gives each test a database of its own.
"""

from __future__ import annotations

import itertools
import os
import pwd
import shutil
import subprocess
import tempfile
from pathlib import Path

import sqlalchemy as sa

from runner.queue.store import open_store

PASSWORD = "hunter2-never-shown"
CONFIGURATION = """
listen_addresses = ''
unix_socket_directories = '{folder}'
log_min_messages = fatal
"""
FOR_TESTS = """
max_connections = 100
shared_buffers = 32MB
fsync = off
full_page_writes = off
wal_level = minimal
max_wal_senders = 0
"""
"""Without fsync: these databases survive a crash of the server, and none of the machine."""


def binaries() -> Path | None:
    """The folder with initdb and pg_ctl, newest version first; None where there is no PostgreSQL."""
    found = [path.parent for path in Path("/usr/lib/postgresql").glob("*/bin/initdb")]
    found.sort(key=lambda folder: -int(folder.parent.name))
    if not found and (on_path := shutil.which("initdb")):
        found = [Path(on_path).resolve().parent]
    return found[0] if found else None


class Cluster:
    """One running server; `database` makes a database, `restart` lets every connection break."""

    def __init__(self, programs: Path, settings: str = FOR_TESTS) -> None:
        self._programs = programs
        self._user = _unprivileged() if os.geteuid() == 0 else None  # PostgreSQL refuses to run as root
        # Not pytest's folder: its path may be longer than a socket's may be.
        self.folder = Path(tempfile.mkdtemp(prefix="pg-"))
        secret = self.folder / "password"
        secret.write_text(PASSWORD)
        if self._user:
            shutil.chown(self.folder, self._user)
            shutil.chown(secret, self._user)
        data = str(self.folder / "data")
        options = ("--username=nightshift", "--auth=scram-sha-256", "--encoding=UTF8", "--locale=C")
        self._run("initdb", "-D", data, "--no-sync", f"--pwfile={secret}", *options)
        with (self.folder / "data" / "postgresql.conf").open("a") as file:
            file.write(CONFIGURATION.format(folder=self.folder) + settings)
        self._numbers = itertools.count()
        self.start()
        self.admin = sa.create_engine(
            sa.make_url(self.url("postgres")), isolation_level="AUTOCOMMIT", poolclass=sa.pool.NullPool
        )
        self._template = self._empty()
        open_store(self.url(self._template), create=True).close()

    def url(self, name: str, password: str = f":{PASSWORD}") -> str:
        return f"postgresql+psycopg://nightshift{password}@/{name}?host={self.folder}"

    def database(self, empty: bool = False) -> str:
        """The URL of a new database, with the tables or without."""
        return self.url(self._empty() if empty else self._empty(f"TEMPLATE {self._template}"))

    def _empty(self, options: str = "") -> str:
        name = f"night{next(self._numbers)}"
        with self.admin.connect() as connection:
            connection.exec_driver_sql(f"CREATE DATABASE {name} {options}")
        return name

    def drop(self, url: str) -> None:
        """Remove a database, whoever is connected to it."""
        with self.admin.connect() as connection:
            connection.exec_driver_sql(f"DROP DATABASE {sa.make_url(url).database} WITH (FORCE)")

    def start(self) -> None:
        self._control("start", "-l", str(self.folder / "server.log"))

    def stop(self, mode: str = "fast") -> None:
        """`fast` ends every connection, `immediate` is a crash: the server recovers when it starts."""
        self._control("stop", "-m", mode)

    def remove(self) -> None:
        self.admin.dispose()
        if (self.folder / "data" / "postmaster.pid").exists():
            self.stop("immediate")
        shutil.rmtree(self.folder)

    def _control(self, command: str, *options: str) -> None:
        self._run("pg_ctl", command, "-w", "-D", str(self.folder / "data"), *options)

    def _run(self, program: str, *arguments: str) -> None:
        become = []
        if self._user is not None:
            group = pwd.getpwnam(self._user).pw_gid
            become = ["setpriv", f"--reuid={self._user}", f"--regid={group}", "--clear-groups"]
        done = subprocess.run(
            [*become, str(self._programs / program), *arguments],
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,  # not a pipe: the server keeps it open
            stderr=subprocess.DEVNULL,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, f"{program} {arguments[0]}: exit {done.returncode}, see {self.folder}"


def _unprivileged() -> str:
    names = {user.pw_name for user in pwd.getpwall()}
    return "postgres" if "postgres" in names else "nobody"
