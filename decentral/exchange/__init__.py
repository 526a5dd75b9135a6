"""Exchanges: how members turn their contributions into one result. Must not know any outer rule's maths."""
