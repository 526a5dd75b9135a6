"""Who is in the swarm, and who does what in a round. Decisions are pure functions of plain records.

This room knows no tensors and no exchange; time comes in as an argument.
"""
