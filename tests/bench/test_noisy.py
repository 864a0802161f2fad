"""The benchmark of a noisy tenant: its verdicts can fail. Long form: it is run, on a quiet machine."""

import socket
from collections import Counter
from pathlib import Path

import pytest

from bench.noisy import Answers, Quiet, Turns, main, verdict


def turns(milliseconds: int, *, refused: int = 0) -> Turns:
    """Of a hundred requests of each kind that took 1 ms, and two that took longer."""
    taken = [0.001] * 98 + [milliseconds / 1_000] * 2
    quiet = Quiet({"GET": taken, "PUT": list(taken)}, Counter([503] * refused))
    return Turns(quiet=quiet, noise=Counter({200: 100, 503: 50}), noise_s=1.0, cores=[0.25])


def test_the_noise_may_make_the_slowest_requests_half_as_slow_again_and_refuse_none() -> None:
    assert verdict([turns(2), turns(2), turns(3)])[0]
    assert not verdict([turns(2), turns(2), turns(4)])[0]
    assert verdict([turns(2), turns(4), turns(3)])[0], "beside work that is paid for it may take longer"
    good, lines = verdict([turns(2), turns(2), turns(3, refused=1)])
    assert not good
    assert "refused {503: 1}" in "\n".join(lines)


def test_answers_are_told_apart_in_whatever_pieces_they_come() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        answers = Answers(ours)
        wire = b"HTTP/1.1 503 Slow Down\r\nContent-Length: 3\r\n\r\nabc"
        for _ in range(2):
            for at in range(len(wire)):
                theirs.send(wire[at : at + 1])
                assert answers.receive() == (503 if at == len(wire) - 1 else 0)
        theirs.close()
        with pytest.raises(ConnectionResetError):
            answers.receive()


@pytest.mark.long
@pytest.mark.parametrize("connections", ["16", "64"])
def test_a_noisy_tenant_does_not_slow_its_neighbour_down(tmp_path: Path, connections: str) -> None:
    assert main(["--connections", connections, "--scratch", str(tmp_path)]) == 0
