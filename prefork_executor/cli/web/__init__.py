"""``prefork-executor top --web``: the live view of a pool in a browser."""
