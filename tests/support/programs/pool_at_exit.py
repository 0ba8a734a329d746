import os
import sys
import time

from prefork_executor import Pool


class Holder:
    pass


if __name__ == "__main__":
    holder = Holder()
    holder.pool = Pool(2)
    holder.result = holder.pool.map_async(time.sleep, [3600] * 10, 1)
    print(holder.pool.apply_async(abs, (-3,)).ready())
