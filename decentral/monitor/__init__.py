"""What a worker records of itself and what ``status`` makes of it: typed events and a pure summary.

This room knows no network, no training and no terminal; it must not import torch, so that ``status`` stays light.
"""
