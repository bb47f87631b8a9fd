"""One load process: a `Load` as one line of JSON in, "ready", a line to start, an `Outcome` out."""

from __future__ import annotations

import json
import sys

from bench.load.plan import Load, Outcome
from bench.load.wire import ConnectionLostError
from bench.load.worker import Worker


def main() -> None:
    """Runs the load that standard input describes."""
    load = Load.from_json(json.loads(sys.stdin.readline()))
    try:
        worker = Worker(load)
        worker.connect()
    except (ConnectionLostError, OSError) as error:
        outcome = Outcome({}, 0.0, 0.0, 0.0, error=f"cannot connect: {error}")
        print("ready", flush=True)
    else:
        print("ready", flush=True)
        sys.stdin.readline()
        outcome = worker.run()
        worker.close()
    print(json.dumps(outcome.to_json()), flush=True)


if __name__ == "__main__":
    main()
