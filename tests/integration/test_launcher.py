"""The launcher of private servers: beside strangers, through kills, after a stale pid, and when there is no way."""

import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import asyncpg
import pytest

from deploy.local.daemon import DaemonError
from deploy.local.servers import Postgres, Servers, apt, down, reach_given, up
from deploy.local.servers.find import DSN_NAMES, ServersError
from deploy.local.servers.rabbitmq import speaks_amqp

SOMEWHERE = {"AMQP_URL": "amqp://broker.example"}


@pytest.fixture
def postgres(tmp_path: Path) -> Iterator[Postgres]:
    yield only_postgres(tmp_path)
    down(tmp_path, remove=True)


def only_postgres(root: Path) -> Postgres:
    servers = up(root, SOMEWHERE)
    assert servers.postgres and servers.rabbitmq is None
    return servers.postgres


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


async def value(dsn: str, query: str) -> object:
    connection = await asyncpg.connect(dsn)
    try:
        return await connection.fetchval(query)
    finally:
        await connection.close()


async def test_both_servers_come_up_and_end_and_leave_no_process(disposable_servers: Servers, tmp_path: Path) -> None:
    assert disposable_servers.postgres and disposable_servers.rabbitmq
    for dsn in disposable_servers.dsns.values():
        assert await value(dsn, "SHOW fsync") == "on"
    assert speaks_amqp(disposable_servers.rabbitmq.port)
    homes = {str((tmp_path / name).resolve()) for name in ("postgres", "rabbitmq")}
    assert any(home in line for line in _processes() for home in homes)
    down(tmp_path)
    assert not [line for line in _processes() if any(home in line for home in homes)]
    assert not listens(disposable_servers.postgres.port)
    assert not listens(disposable_servers.rabbitmq.port)


def test_a_broker_that_was_killed_comes_back_on_its_port_and_takes_orders(disposable_servers: Servers) -> None:
    broker = disposable_servers.rabbitmq
    assert broker
    port = broker.port
    broker.kill()
    assert not listens(port)
    broker.start()
    assert broker.port == port and speaks_amqp(port)
    broker.add_vhosts(["first", "second"])
    broker.delete_vhosts(["first", "second"])  # raises for one that is not there


async def test_a_database_that_was_killed_comes_back_on_its_port_with_its_rows(postgres: Postgres) -> None:
    dsn = postgres.dsn("gateway")
    await value(dsn, "CREATE TABLE kept AS SELECT 1 AS number")
    postgres.kill()
    assert not listens(postgres.port)
    postgres.start()
    assert await value(dsn, "SELECT number FROM kept") == 1


def test_a_private_instance_comes_up_beside_a_server_that_holds_its_port(postgres: Postgres, tmp_path: Path) -> None:
    old_port = postgres.port
    postgres.stop()
    with socket.socket() as stranger:
        stranger.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        stranger.bind(("127.0.0.1", old_port))
        stranger.listen()
        again = only_postgres(tmp_path)
        assert again.port != old_port
        assert again.running()


def test_a_second_start_uses_the_instance_that_runs(postgres: Postgres, tmp_path: Path) -> None:
    pid_file = (tmp_path / "postgres").resolve() / "pid"
    before = pid_file.read_text()
    assert only_postgres(tmp_path).port == postgres.port
    assert pid_file.read_text() == before


def test_a_pid_that_belongs_to_another_process_now_is_not_taken_for_the_server(
    postgres: Postgres, tmp_path: Path
) -> None:
    postgres.kill()
    home = (tmp_path / "postgres").resolve()
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as stranger:
        (home / "pid").write_text(f"{stranger.pid} 1\n")
        postmaster_pid = home / "data" / "postmaster.pid"
        lines = postmaster_pid.read_text().splitlines()
        postmaster_pid.write_text("\n".join([str(stranger.pid), *lines[1:]]) + "\n")
        again = only_postgres(tmp_path)
        assert again.running()
        down(tmp_path)
        assert stranger.poll() is None
        stranger.send_signal(signal.SIGKILL)


def test_urls_in_the_environment_are_taken_as_they_are(tmp_path: Path) -> None:
    given = {name: f"postgresql://db.example/{database}" for database, name in DSN_NAMES.items()}
    servers = up(tmp_path, given | SOMEWHERE)
    assert servers.urls() == given | SOMEWHERE
    assert not (tmp_path / "postgres").exists() and not (tmp_path / "rabbitmq").exists()


def test_a_server_of_the_environment_that_does_not_answer_is_told_at_once(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as answering:
        here = f"127.0.0.1:{answering.getsockname()[1]}"
        dsns = {name: f"postgresql://{here}/{database}" for database, name in DSN_NAMES.items()}
        reach_given(dsns)
        assert f"GATEWAY_DATABASE_URL of your environment: {here}" in capsys.readouterr().err
    with pytest.raises(ServersError, match=rf"nothing answers at {here}, which AMQP_URL"):
        reach_given({"AMQP_URL": f"amqp://{here}/"})


def test_some_database_urls_without_the_others_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ServersError, match="BILLING_DATABASE_URL"):
        up(tmp_path, {"GATEWAY_DATABASE_URL": "postgresql://db/gateway"})


def test_without_any_way_one_error_names_all_four(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deploy.local.servers.postgres.BIN_FOLDERS", ())
    monkeypatch.setattr("deploy.local.servers.rabbitmq.BIN_FOLDERS", ())
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ServersError) as caught:
        up(tmp_path, {})
    for way in ("AMQP_URL", "install the programs", "Docker", "apt-get"):
        assert way in str(caught.value)


@pytest.mark.parametrize("succeeds", [True, False])
def test_apt_get_runs_while_no_package_may_start_a_server_and_leaves_the_files_as_they_were(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, succeeds: bool
) -> None:
    policy, cluster, seen = tmp_path / "policy-rc.d", tmp_path / "pg" / "createcluster.conf", tmp_path / "seen"
    policy.write_text("#!/bin/sh\nexit 0\n")
    programs = tmp_path / "bin"
    programs.mkdir()
    ending = "" if succeeds else "exit 1"
    script = f'#!/bin/sh\n{{ {policy}; echo "$? $(cat {cluster}) $*"; }} >>{seen}\n{ending}\n'
    (programs / "apt-get").write_text(script)
    (programs / "apt-get").chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:/usr/bin:/bin")
    monkeypatch.setattr(apt, "POLICY", policy)
    monkeypatch.setattr(apt, "CLUSTER_CONFIGURATION", cluster)
    with nullcontext() if succeeds else pytest.raises(DaemonError, match="apt-get update failed"):
        apt.install(["postgresql"])
    calls = seen.read_text().splitlines()
    assert len(calls) == (2 if succeeds else 1)
    assert all(call.startswith("101 create_main_cluster = false") for call in calls)
    assert policy.read_text() == "#!/bin/sh\nexit 0\n"
    assert not cluster.exists()


def _processes() -> list[str]:
    command = ["ps", "-A", "-ww", "-o", "args="]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
