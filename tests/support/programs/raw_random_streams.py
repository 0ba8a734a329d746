import os

import numpy.random

from prefork_executor.raw import PreforkPool

numpy.random.seed(3)
read_end, write_end = os.pipe()
os.set_blocking(read_end, False)


def child():
    pool.kid_busy()
    os.write(write_end, b"%12d" % numpy.random.randint(10**9))


pool = PreforkPool(min_spare_servers=1, max_spare_servers=2, start_servers=2)
drawn = []
with pool:
    while len(drawn) < 4 and pool.whip_kids(child):
        try:
            drawn.append(os.read(read_end, 12))
        except BlockingIOError:
            pass
print(len(set(drawn)))
