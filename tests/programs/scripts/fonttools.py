"""`cu2qu` converts fonts by `starmap`, one a task."""

import sys

import ufoLib2
from fontTools.cu2qu.cli import _main

if __name__ == "__main__":
    for number in range(6):
        font = ufoLib2.Font()
        font.info.unitsPerEm = 1000
        pen = font.newGlyph("a").getPen()
        pen.moveTo((0, 0))
        pen.curveTo((0, 100 + number), (100, 200), (200, 200 - number))
        pen.lineTo((200, 0))
        pen.closePath()
        font.save(f"font_{number}.ufo", overwrite=True)
    names = [f"font_{number}.ufo" for number in range(6)]
    sys.exit(_main(["--jobs", "2", "-d", "converted", *names]))
