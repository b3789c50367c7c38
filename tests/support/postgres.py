"""A Postgres of its own in a folder, from Debian's packages: no cluster of this machine is used."""

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from webserver import free_port

PASSWORD = "p0stgres-s3cret"


def programs() -> Path | None:
    """The folder of the newest installed server's programs; None without one."""
    debian = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda p: int(p.parent.name))
    found = shutil.which("initdb")
    return debian[-1] if debian else Path(found).resolve().parent if found else None


@contextmanager
def postgres() -> Iterator[str]:
    """Address of an empty database ``dagster`` on a free port of this machine."""
    folder, port, bin_folder = Path(tempfile.mkdtemp(prefix="postgres")), free_port(), programs()
    assert bin_folder is not None
    (folder / "password").write_text(PASSWORD)
    # It refuses to run as root; Debian's package brings a user.
    user = "postgres" if os.geteuid() == 0 else None
    if user:
        owner = pwd.getpwnam(user)
        for path in (folder, folder / "password"):
            os.chown(path, owner.pw_uid, owner.pw_gid)

    def do(program: str, *arguments: str) -> None:
        subprocess.run(
            [bin_folder / program, *arguments], user=user, check=True, timeout=60, cwd=folder,
            env={**os.environ, "PGPASSWORD": PASSWORD}, stdout=subprocess.DEVNULL,
        )  # fmt: skip

    data, log = str(folder / "data"), str(folder / "log")
    do("initdb", "-D", data, "-U", "dagster", "--auth=scram-sha-256",
       "--pwfile", str(folder / "password"))  # fmt: skip
    server = ("-D", data, "-w", "-l", log)
    do("pg_ctl", *server, "-o", f"-h 127.0.0.1 -p {port} -k {folder}", "start")
    try:
        do("createdb", "-h", "127.0.0.1", "-p", str(port), "-U", "dagster", "dagster")
        yield f"postgresql+psycopg2://dagster:{PASSWORD}@127.0.0.1:{port}/dagster"
    finally:
        do("pg_ctl", *server, "-m", "immediate", "stop")
        shutil.rmtree(folder)
