"""Data of the HF worker: rows of data sets as batches of token sequences. It knows neither model nor swarm."""

from decentral.workers.hf.data.dealing import DealtData
from decentral.workers.hf.data.packing import names_of
from decentral.workers.hf.data.settings import DataSettings
from decentral.workers.hf.data.training import TrainingData, open_data

__all__ = ["DataSettings", "DealtData", "TrainingData", "names_of", "open_data"]
