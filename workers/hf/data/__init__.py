"""Data of the HF worker: rows of data sets as batches of token sequences. It knows neither model nor swarm."""

from decentral.workers.hf.data.settings import DataSettings
from decentral.workers.hf.data.training import TrainingData, open_data

__all__ = ["DataSettings", "TrainingData", "open_data"]
