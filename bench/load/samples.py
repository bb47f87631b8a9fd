"""Measurement results of the kinds and sizes a large measurement network delivers.

JSON as RIPE Atlas probes report it, made from a seed. The sizes follow what the
network shows, median and largest bytes: ping 446 and 507, traceroute 2,693 and
7,721, DNS 626 and 4,164, TLS 2,065 and 4,824.
"""

from __future__ import annotations

import base64
import json
import random
from pathlib import Path
from typing import Any, Final

MIXES: Final[dict[str, dict[str, int]]] = {
    # Shares per hundred. "table": every kind well represented, 0.4 to 8 KB, 1.4 KB on average.
    "table": {"ping": 40, "traceroute": 30, "dns": 20, "tls": 10},
    # "network": as the whole network delivers them, 0.8 KB on average.
    "network": {"ping": 61, "traceroute": 11, "dns": 26, "tls": 2},
    # "small": about 200 bytes, for comparison with other measurements.
    "small": {"tiny": 100},
}


def _address(rng: random.Random) -> str:
    return f"192.0.2.{rng.randrange(1, 255)}"


def _envelope(rng: random.Random, kind: str) -> dict[str, Any]:
    return {
        "fw": 5080,
        "mver": "2.6.2",
        "lts": rng.randrange(5, 90),
        "dst_name": f"host-{rng.randrange(1000, 9999)}.example.net",
        "af": 4,
        "dst_addr": _address(rng),
        "src_addr": _address(rng),
        "msm_id": rng.randrange(1_000_000, 9_999_999),
        "prb_id": rng.randrange(1, 70_000),
        "timestamp": 1_760_000_000 + rng.randrange(1_000_000),
        "type": kind,
        "from": _address(rng),
        "group_id": rng.randrange(1_000_000, 9_999_999),
        "stored_timestamp": 1_760_000_000 + rng.randrange(1_000_000),
    }


def _rtt(rng: random.Random) -> float:
    return round(rng.lognormvariate(3.0, 0.8), 6)


def _ping(rng: random.Random) -> dict[str, Any]:
    rtts = [_rtt(rng) for _ in range(3)]
    return _envelope(rng, "ping") | {
        "proto": "ICMP",
        "ttl": rng.randrange(40, 64),
        "size": 64,
        "result": [{"rtt": rtt} for rtt in rtts],
        "dup": 0,
        "rcvd": 3,
        "sent": 3,
        "min": min(rtts),
        "max": max(rtts),
        "avg": round(sum(rtts) / 3, 6),
    }


def _traceroute(rng: random.Random) -> dict[str, Any]:
    hops = min(39, max(5, round(rng.lognormvariate(2.53, 0.4))))
    result = []
    for hop in range(1, hops + 1):
        router = _address(rng)
        replies = [
            {"from": router, "ttl": 255 - hop, "size": 76, "rtt": round(_rtt(rng), 3)}
            for _ in range(3)
        ]
        result.append({"hop": hop, "result": replies})
    return _envelope(rng, "traceroute") | {
        "proto": "ICMP",
        "size": 48,
        "paris_id": rng.randrange(16),
        "result": result,
    }


def _encoded(rng: random.Random, size_bytes: int) -> str:
    return base64.b64encode(rng.randbytes(size_bytes)).decode()


def _dns(rng: random.Random) -> dict[str, Any]:
    answer = min(2700, max(80, round(rng.lognormvariate(4.75, 0.9))))
    return _envelope(rng, "dns") | {
        "proto": "UDP",
        "result": {
            "rt": _rtt(rng),
            "size": answer,
            "abuf": _encoded(rng, answer),
            "ID": rng.randrange(65536),
            "ANCOUNT": 1,
            "QDCOUNT": 1,
            "NSCOUNT": 0,
            "ARCOUNT": 1,
        },
    }


def _tls(rng: random.Random) -> dict[str, Any]:
    return _envelope(rng, "sslcert") | {
        "method": "TLS",
        "ver": "1.2",
        "rt": _rtt(rng),
        "ttc": _rtt(rng),
        "cert": [_encoded(rng, min(3300, max(700, round(rng.lognormvariate(7.1, 0.4)))))],
    }


def _tiny(rng: random.Random) -> dict[str, Any]:
    full = _envelope(rng, "ping")
    return {
        name: full[name]
        for name in ("dst_addr", "src_addr", "msm_id", "prb_id", "type", "dst_name", "timestamp")
    } | {
        "min": _rtt(rng),
        "avg": _rtt(rng),
        "max": _rtt(rng),
    }


_MAKERS = {"ping": _ping, "traceroute": _traceroute, "dns": _dns, "tls": _tls, "tiny": _tiny}


def make_results(mix: str, *, count: int, seed: int) -> list[tuple[str, bytes]]:
    """``count`` results as (module name, data), in the shares of `MIXES` [``mix``], shuffled."""
    rng = random.Random(seed)
    kinds: list[str] = []
    for kind, share in MIXES[mix].items():
        kinds += [kind] * max(1, round(count * share / 100))
    results = [
        (kind, json.dumps(_MAKERS[kind](rng), separators=(",", ":")).encode()) for kind in kinds
    ]
    rng.shuffle(results)
    return results


def load_results(path: Path) -> list[tuple[str, bytes]]:
    """Results of one's own, one JSON object a line, instead of made ones."""
    lines = [line for line in path.read_bytes().splitlines() if line.strip()]
    return [(str(json.loads(line).get("type", "traceroute")), line) for line in lines]
