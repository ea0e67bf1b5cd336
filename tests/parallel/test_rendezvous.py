"""Processes meeting, played by threads: nothing here needs a second process."""

import contextlib
import json
import socket
from concurrent.futures import ThreadPoolExecutor

from maxlm.errors import ParallelError
from maxlm.launch.local import free_port
from maxlm.parallel.cluster import Membership
from maxlm.parallel.rendezvous import GREETING, bind_address, meet


def outcomes(members: list[Membership], seconds: float) -> list[str]:
    """What each of them raises, empty where it meets the others."""

    def one(member: Membership) -> str:
        try:
            meet(member, seconds)
        except ParallelError as error:
            return str(error)
        return ""

    with ThreadPoolExecutor(len(members)) as pool:
        return list(pool.map(one, members))


def members(count: int, *processes: int, address: str | None = None) -> list[Membership]:
    address = address or f"127.0.0.1:{free_port()}"
    return [Membership("a test", count, process, address) for process in processes]


def test_all_meet_in_any_order_and_the_port_is_free_again():
    group = members(5, 3, 1, 0, 4, 2)
    assert outcomes(group, 20) == [""] * 5
    port = int(group[0].address.rpartition(":")[2])
    socket.create_server(("127.0.0.1", port)).close()


def test_all_who_came_are_told_who_did_not():
    for said in outcomes(members(6, 0, 2, 5), 1.0):
        assert "processes 1, 3, 4 of 6 did not join within 1 s" in said


def test_without_the_first_process_the_others_say_so():
    (said,) = outcomes(members(2, 1), 0.5)
    assert "process 1 of 2 could not join process 0 at 127.0.0.1:" in said
    assert "process 0 never joined" in said and "a test" in said


def test_a_port_in_use_is_said():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        (said,) = outcomes(members(2, 0, address=address), 5)
    assert f"port {address.split(':')[1]} is in use" in said


def test_two_that_say_they_are_the_same_process():
    for said in outcomes(members(3, 0, 1, 1), 10):
        assert "two processes say that they are process 1" in said


def test_processes_of_starts_of_different_sizes():
    group = members(2, 0)
    group += members(4, 1, address=group[0].address)
    for said in outcomes(group, 10):
        assert "process 1 (" in said and "started as one of 4 processes, but process 0" in said


def reached(port: int) -> socket.socket:
    """A connection to who will listen there in a moment."""
    while True:
        with contextlib.suppress(ConnectionRefusedError):
            return socket.create_connection(("127.0.0.1", port))


def test_a_stranger_at_the_port_is_ignored():
    group = members(2, 0, 1)
    port = int(group[0].address.rpartition(":")[2])
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(meet, group[0], 20)
        with reached(port) as stranger:
            stranger.sendall(b"GET / HTTP/1.0\r\n\r\n")
            stranger.shutdown(socket.SHUT_WR)
            meet(group[1], 20)
        first.result()


def call_and_die(port: int, process: int, count: int) -> None:
    with reached(port) as caller:
        hello = {"greeting": GREETING, "process": process, "count": count, "where": "gone"}
        caller.sendall(json.dumps(hello).encode() + b"\n")


def test_one_that_ends_while_it_waits_may_come_again():
    group = members(3, 0, 1, 2)
    port = int(group[0].address.rpartition(":")[2])
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(meet, group[0], 20)
        call_and_die(port, 1, 3)
        other = pool.submit(meet, group[2], 20)
        meet(group[1], 20)
        first.result()
        other.result()


def test_one_that_ended_while_it_waited_is_missing():
    first, last = members(3, 0, 2)
    port = int(first.address.rpartition(":")[2])
    with ThreadPoolExecutor(1) as pool:
        said = pool.submit(outcomes, [first], 3.0)
        call_and_die(port, 1, 3)
        for text in (*outcomes([last], 3.0), *said.result()):
            assert "process 1 of 3 did not join within 3 s" in text


def test_processes_of_one_machine_listen_on_it_alone():
    assert bind_address("127.0.0.1:5000") == bind_address("localhost:5000") == "127.0.0.1:5000"
    assert bind_address("host-0:5000") in ("[::]:5000", "0.0.0.0:5000")
