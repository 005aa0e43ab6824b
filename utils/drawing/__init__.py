"""Contact sheets of faces and verdicts by Pillow, plots by matplotlib."""
