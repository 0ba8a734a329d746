"""The caller's end of a pool.

The way of the data::

    caller's threads            the I/O thread                    the pool's processes

    Client.submit
      pickle the call
      enter it into the books
      send it, if it is next ──────────────────── task pipe ────▶ workers
                                                                    │
                      send what waits ─────────── task pipe ────▶   │
                         ▲                                          │
                         │                                          │
                      enter outcomes ◀── read ◀── yell channel ◀────┤
                         │                                          │
    Future.result ◀── tell the futures                              │
                                                                    │
    DirectReader, for a caller ◀───────────────── yell channel ◀────┘
    that waits for the only task

                      tell it what to do ──────── control ──────▶ supervisor
                      read notices ◀───────────── yell channel ◀──┘
"""
