"""Several processes of one command on this machine: python experiments/launch/local.py 2 -m avs_jax.train --config=...

They meet over the loopback, and their output is shown line by line behind their number. When one fails, all are
stopped, and so is everything by Ctrl-C: once for a last checkpoint, twice at once. It is for trying what several
processes do; one process uses all devices of a machine by itself.
"""

import os
import signal
import socket
import subprocess
import sys
import threading
import time

GRACE = 90.0  # seconds that processes have to stop by themselves when one has failed


def main(argv) -> int:
    """The command; its exit status: that of the process that ended first with another than 0."""
    if len(argv) < 2 or not argv[0].isdecimal() or int(argv[0]) < 1:
        print(
            f"error: expected a number of processes and Python's arguments; {__doc__.splitlines()[0]}", file=sys.stderr
        )
        return 2
    count, port = int(argv[0]), _free_port()
    processes = [_start(argv[1:], count, i, port) for i in range(count)]
    printers = [threading.Thread(target=_forward, args=(i, p.stdout)) for i, p in enumerate(processes)]
    for printer in printers:
        printer.start()
    _stop_on_signals(processes)
    status = _wait(processes)
    for printer in printers:
        printer.join()
    return status


def _start(arguments, count, index, port):
    command = [sys.executable, "-u", *arguments, f"--coordinator=127.0.0.1:{port}", f"--process_count={count}",
               f"--process_id={index}"]  # fmt: skip
    # A session of its own: a terminal's Ctrl-C reaches this program alone, which passes it on.
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True)


def _free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def _forward(index, stream):
    for line in stream:
        text = f"[{index}] {line.decode(errors='replace').rstrip()}\n"
        os.write(1, text.encode())  # a line in one piece, whoever else writes


def _stop_on_signals(processes):
    """The first signal asks for a last checkpoint, as SIGTERM does on a cluster; the second ends all."""
    asked = []

    def stop(number, frame):
        asked.append(number)
        for process in processes:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM if len(asked) == 1 else signal.SIGKILL)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)


def _wait(processes) -> int:
    status, end = 0, float("inf")
    while any(p.poll() is None for p in processes):
        ended = [p.returncode for p in processes if p.poll() not in (None, 0)]
        if ended and not status:
            status, end = ended[0], time.monotonic() + GRACE
        if time.monotonic() > end:
            for process in processes:
                process.kill()
        time.sleep(0.1)
    status = status or next((p.returncode for p in processes if p.returncode), 0)
    return status if status >= 0 else 128 - status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
