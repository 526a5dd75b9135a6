"""Exchanges: how the members of a round turn their contributions into one result. Must not know any outer rule's maths."""
