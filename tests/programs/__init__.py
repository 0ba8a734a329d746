"""Real programs that use ProcessPoolExecutor, each run twice: with it, and with
PreforkExecutor in its place. They must do the same.

``programs.py`` lists them, ``scripts/`` has those that are ours, around the library that is
tried; ``swap/`` puts one pool in the place of the other, ``running.py`` runs a program and
says what it did. ``outcomes.py`` makes the table of docs/migrating.md.
"""
