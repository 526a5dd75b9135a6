"""Handing the state to others and fetching it: pieces with digests, donors, and one download from many of them."""
