"""Commands of this checkout, run from its root; what is written in Python is in ``benches``. Not part of the wheel."""
