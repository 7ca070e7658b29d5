"""What a partitioned program sends between devices, read from its HLO, and how long that takes on given links."""

import dataclasses
import math
import re
from collections.abc import Iterable

import numpy as np

BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2, "f32": 4, "s32": 4, "u32": 4, "f64": 8}
BYTES |= {"s64": 8, "u64": 8}
KINDS = ("all-reduce", "reduce-scatter", "all-gather", "all-to-all", "collective-permute")
COMBINED = 32 * 2**20  # bytes: XLA joins smaller operations of one kind into one of about this size


@dataclasses.dataclass(frozen=True)
class Collective:
    """One operation. size: bytes of the whole array on one device: before a reduction, after a gathering."""

    kind: str
    size: int
    groups: tuple[tuple[int, ...], ...]

    @property
    def members(self) -> int:
        return len(self.groups[0])

    def wire_bytes(self) -> float:
        """Bytes that each device sends in a ring: an all-reduce is a reduce-scatter and an all-gather."""
        share = (self.members - 1) / self.members
        return self.size * {"all-reduce": 2 * share, "collective-permute": 1.0}.get(self.kind, share)


@dataclasses.dataclass(frozen=True)
class Links:
    """Bytes/s per device and direction: inside a host, and to other hosts; seconds that an operation takes at least.

    efficiency: the share of a link's rate that collective operations reach.
    """

    devices_per_host: int
    inside: float
    between: float
    latency: float
    efficiency: float

    def rate(self, group: tuple[int, ...]) -> float:
        """Bytes/s of one member of a ring over the group; the members in a host share that host's links."""
        hosts = {device // self.devices_per_host for device in group}
        if len(hosts) == 1:
            return self.inside * self.efficiency
        return min(self.inside, self.between * len(group) / len(hosts)) * self.efficiency


def parse(hlo: str) -> list[Collective]:
    """The collective operations of an HLO text, as the SPMD partitioner leaves it.

    An all-reduce that only dynamic-slices read is counted as the reduce-scatter that XLA makes of it on GPUs and TPUs.
    Raises ValueError for replica groups in a form that it does not know.
    """
    found = []
    for name, shapes, kind, rest in re.findall(rf"%?([\w.-]+) = (.*?) ({'|'.join(KINDS)})(?:-start)?\((.*)", hlo):
        groups = _groups(rest)
        if len(groups[0]) == 1:
            continue
        size = sum(BYTES[t] * math.prod(map(int, dims.split(","))) if dims else BYTES[t] for t, dims in _shapes(shapes))
        if kind == "reduce-scatter":
            size *= len(groups[0])
        elif kind == "all-reduce" and _only_sliced(hlo, name):
            kind = "reduce-scatter"
        found.append(Collective(kind, size, groups))
    return found


def seconds(collectives: Iterable[Collective], links: Links) -> float:
    """Time of all of them, one after the other; small ones of one kind and group are joined."""
    joined: dict[tuple, float] = {}
    for c in collectives:
        joined[c.kind, c.groups] = joined.get((c.kind, c.groups), 0.0) + c.wire_bytes()
    total = 0.0
    for (_, groups), sent in joined.items():
        total += sent / min(map(links.rate, groups))
        total += math.ceil(sent / COMBINED) * links.latency * math.ceil(math.log2(len(groups[0])))
    return total


def _shapes(text: str) -> list[tuple[str, str]]:
    return re.findall(r"(\w+)\[([\d,]*)\]", text)


def _only_sliced(hlo: str, name: str) -> bool:
    users = re.findall(rf" ([\w-]+)\([^)\n]*%{re.escape(name)}[,)]", hlo)
    return bool(users) and set(users) == {"dynamic-slice"}


def _groups(text: str) -> tuple[tuple[int, ...], ...]:
    # mesh['data'=2,'fsdp'=4] {'fsdp'}, or mesh['axis_0'=4,'axis_1'=2], device_ids=([2,4]T(1,0)) {'axis_1'}
    if match := re.search(r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\((\S+)\))? \{([^}]*)\}", text):
        sizes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", match[1])}
        axes = re.findall(r"'([^']+)'", match[3])
        order = [list(sizes).index(a) for a in sizes if a not in axes] + [list(sizes).index(a) for a in axes]
        ids = _iota(match[2]) if match[2] else np.arange(math.prod(sizes.values()))
        ids = ids.reshape(*sizes.values()).transpose(order)
        return _rows(ids.reshape(-1, math.prod(sizes[a] for a in axes)))
    if match := re.search(r"replica_groups=\[(\d+),(\d+)\]<=(\S+?)(?:, |$)", text):
        return _rows(_iota(match[3]).reshape(int(match[1]), int(match[2])))
    if match := re.search(r"replica_groups=\{(\{[\d,]+\}(?:,\{[\d,]+\})*)\}", text):
        return tuple(tuple(map(int, g.split(","))) for g in re.findall(r"\{([\d,]+)\}", match[1]))
    if match := re.search(r"source_target_pairs=\{(.*?)\}\}", text + "}"):
        return tuple((int(a), int(b)) for a, b in re.findall(r"\{(\d+),(\d+)", match[0]))
    raise ValueError(f"replica groups of an unknown form: {text[:200]}")


def _iota(text: str) -> np.ndarray:
    """ "[2,4]T(1,0)": 0, 1, 2 ... in that shape, its axes in that order."""
    shape, _, order = text.partition("T")
    dims = [int(d) for d in re.findall(r"\d+", shape)]
    ids = np.arange(math.prod(dims)).reshape(dims)
    return ids.transpose([int(d) for d in re.findall(r"\d+", order)]) if order else ids


def _rows(ids: np.ndarray) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(int(i) for i in row) for row in ids)
