"""Scenarios that come along, by name: ``decentral simulate eight-homes``. No code."""
