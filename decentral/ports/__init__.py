"""The interfaces through which the core meets the world: implemented in ``adapters`` (real) and ``sim`` (virtual).

Nothing but interfaces lives here, and every implementation passes the suite in ``tests/contract``.
"""
