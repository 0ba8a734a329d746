"""All rows of the performance table, by name, in its order."""

from __future__ import annotations

from measuring import Work
from work_latency import LATENCY
from work_pool import OF_POOLS
from work_scaling import SCALING
from work_starting import STARTING
from work_throughput import THROUGHPUT

WORKS: dict[str, Work] = {
    work.name: work for work in (*THROUGHPUT, *OF_POOLS, *LATENCY, *STARTING, *SCALING)
}
